/* What training made of the items: predicted against confirmed, rewards, reasoning quality. */

const SCORE_NAMES = {
  p_unlearnable: "p_unlearnable",
  pass_rate: "pass rate alone",
  semantic_similarity: "semantic similarity",
};
const KINDS = {
  unlearnable: "unlearnable",
  learnable: "learnable",
  no_positive: "no positive reward",
  seeds_disagree: "seeds disagree",
  not_judged: "not judged",
};

function confirmation(facts, tags) {
  if (facts === null) return [];
  const notes = [facts.too_few, ...facts.notes].filter(Boolean);
  return [
    notes.length ? el("div", { class: "note wide" }, notes.map((text) => el("p", null, visible(text)))) : null,
    confusion(facts, tags),
    aurocs(facts),
    partition(facts),
    sweep(facts),
  ];
}

function confusion(facts, tags) {
  const most = Math.max(1, ...tags.flatMap((tag) => tags.map((other) => facts.confusion[tag][other])));
  const rows = tags.map((tag) =>
    el(
      "tr", null,
      el("th", { scope: "row" }, tagLabel(tag)),
      tags.map((other) => {
        const value = facts.confusion[tag][other];
        const cell = el("td", { class: tag === other ? "same" : null }, value ? count(value) : "·");
        cell.style.background = `color-mix(in oklab, var(--accent) ${Math.round(55 * Math.sqrt(value / most))}%, var(--panel))`;
        return cell;
      }),
    ),
  );
  return figure(
    "Predicted against confirmed",
    el(
      "div", { class: "scroll" },
      el(
        "table", { class: "confusion" },
        el("thead", null, el("tr", null, el("td", null, "predicted ↓ confirmed →"), tags.map((tag) => el("th", { scope: "col" }, tag)))),
        el("tbody", null, rows),
      ),
    ),
    `Items. Confirmed by recipe ${visible(facts.recipe)}, ${facts.seeds.length === 1 ? "seed" : "seeds"} ${facts.seeds.join(", ")}: ` +
      `learnable reached τ = ${facts.tau} in every seed, unlearnable in none; undetermined: the seeds disagree.`,
  );
}

function aurocs(facts) {
  const parts = [
    ["items on which the seeds agree", facts.agreement],
    ["all hard items with a positive", facts.agreement_all],
  ];
  const rows = parts.flatMap(([where, found]) => [
    { head: `${where}: ${count(found.unlearnable)} unlearnable, ${count(found.learnable)} learnable` },
    ...Object.entries(found.scores).map(([name, score]) => ({ name: SCORE_NAMES[name] ?? visible(name), score })),
  ]);
  const height = 30 + rows.length * 26 + 20;
  const drawn = chart("AUROC for unlearnable items, with 95 % intervals", height, (plot, width) => {
    const [left, right, top] = [132, width - 46, 12];
    const x = linear(0, 1, left, right);
    const bottom = top + rows.length * 26 + 4;
    plot.append(line(left, bottom, right, bottom, "axis"));
    xAxis(plot, x, [0, 0.25, 0.5, 0.75, 1], bottom, String);
    rows.forEach((row, number) => {
      const y = top + number * 26 + 16;
      if (row.head) return plot.append(text(0, y + 2, row.head, "head", "start"));
      plot.append(line(x(0.5), y - 13, x(0.5), y + 13, "threshold"));
      const { auroc, auroc_low: low, auroc_high: high } = row.score;
      plot.append(text(left - 10, y + 4, row.name, "tick", "end"));
      if (auroc === null) return plot.append(text(left + 4, y + 4, "not defined", "tick", "start"));
      const mark = svg("g", null, low === null ? null : line(x(low), y, x(high), y, "range"), svg("circle", { cx: x(auroc), cy: y, r: 4, class: "dot" }));
      mark.append(svg("rect", { x: left, y: y - 10, width: right - left, height: 20, class: "hit" }));
      plot.append(withTip(mark, `${row.name}: AUROC ${rate(auroc, 2)} (${between(low, high, 2)})`), text(right + 42, y + 4, rate(auroc, 2), "tick", "end"));
    });
  });
  const out = facts.agreement.left_out;
  return figure(
    "How well the score tells unlearnable items",
    drawn,
    "AUROC with 95 % intervals; the dashed line is guessing. " +
      (out ? `${plural(out, "item")} without p_unlearnable left out of the first part. ` : "") +
      (facts.too_few ? visible(facts.too_few) : ""),
  );
}

function partition(facts) {
  const { table1 } = facts;
  const strict = table1.positives_in_training_only;
  const rows = Object.entries(KINDS)
    .filter(([kind]) => kind !== "not_judged" || table1[kind].items)
    .map(([kind, name]) => [name, count(table1[kind].items), percent(table1[kind].share), percent(strict[kind].share)]);
  return figure(
    "What became of the hard items",
    el("div", { class: "scroll" }, table(["", "items", "share", "share, positives in training only"], rows)),
    `${count(table1.hard_items)} hard items of ${count(facts.items)}, as the paper's Table 1 parts them; the last column counts positives as the paper does.`,
  );
}

function sweep(facts) {
  const rows = facts.tau_sweep.map((row) => [
    rate(row.tau, 2), count(row.hard_items), count(row.unlearnable.items), count(row.learnable.items),
    count(row.no_positive.items), count(row.seeds_disagree.items), count(row.auroc_items),
    rate(row.auroc_gradient_similarity, 2), rate(row.auroc_pass_rate, 2),
  ]);
  const head = ["τ", "hard", "unlearnable", "learnable", "no positive", "disagree", "compared", "AUROC similarity", "AUROC pass rate"];
  return figure(
    "If τ were another",
    numbers(head, rows),
    "AUROCs are over the compared items, which have a similarity. At a higher τ the hard items span a wider range of pass rates, so that a rising AUROC of the pass rate is no discovery.",
  );
}

// --- Rewards ---------------------------------------------------------------------------------

// A recipe's curves; beside its rewards, where they are of another recipe, those of the baseline.
function rewards(recipes, tags, confirmation) {
  const baseline = recipes.find(({ recipe }) => recipe === (confirmation?.recipe ?? "baseline"));
  const drawn = recipes
    .filter((recipe) => recipe.groups.length)
    .flatMap((recipe) => [
      [recipe, MEAN_REWARD, recipe === baseline ? null : baseline],
      ...(mostClipped(recipe) > 0 ? [[recipe, CLIPPED, null]] : []),
    ]);
  const isOdd = drawn.length % 2 === 1;
  return drawn.map((each, number) => trainingFigure(...each, tags, isOdd && number === 0));
}

const MEAN_REWARD = {
  key: "mean_reward",
  groups: "rollout_groups",
  title: "Rewards in training",
  axis: "mean reward",
  most: 1,
  format: (value) => rate(value),
  tick: String,
  words: "Every generated group of rollouts counts once, those without a gradient too.",
};
const CLIPPED = {
  key: "clipped_fraction",
  groups: "clipped_groups",
  title: "Clipped tokens in training",
  axis: "share of tokens clipped",
  most: null,
  format: (value) => permille(value),
  tick: (value) => `${Number((1000 * value).toPrecision(3))} ‰`,
  words: "Mean share of a group's tokens whose probability ratio was clipped in the loss, over the groups of rollouts that reached it.",
};

// The largest share of clipped tokens in the chart; null where none is known.
function mostClipped(recipe) {
  const shares = recipe.groups.flatMap((group) =>
    [group.clipped_fraction, group.clipped_fraction_high, ...group.clipped_fraction_by_seed].flat(),
  );
  const known = shares.filter((share) => share !== null);
  return known.length ? Math.max(...known) : null;
}

function trainingFigure(recipe, measure, baseline, tags, wide) {
  const { key, title, format } = measure;
  const middle = middles(recipe);
  const most = measure.most ?? mostClipped(recipe);
  const seeds = `${recipe.seeds.length === 1 ? "Seed" : "Seeds"} ${recipe.seeds.join(", ")}`;
  const name = `${title}: ${visible(recipe.recipe)}`;
  const drawn = chart(`${title} by group, recipe ${visible(recipe.recipe)}`, 260, (plot, width, height) => {
    const [left, right, bottom, top] = [42, width - 10, height - 40, 28];
    const y = linear(0, most, bottom, top);
    const x = linear(1, Math.max(2, recipe.last_step.at(-1)), left, right);
    yAxis(plot, y, ticks(0, most, 5), left, right, measure.tick);
    xAxis(plot, x, ticks(1, recipe.last_step.at(-1), width < 420 ? 3 : 6).filter(Number.isInteger), bottom, count);
    axisName(plot, (left + right) / 2, height - 4, "step");
    axisName(plot, left - 36, top - 16, measure.axis, "start");
    for (const group of recipe.groups) {
      const before = baseline?.groups.find((each) => each.group === group.group);
      if (before) plot.append(...curve(before[key], x, y, middles(baseline), `curve baseline ${group.group}`));
      const [values, low, high] = ["", "_low", "_high"].map((end) => group[`${key}${end}`]);
      for (const part of segments(low)) {
        const upper = part.map((at) => `${x(middle[at])},${y(high[at])}`);
        const lower = part.map((at) => `${x(middle[at])},${y(low[at])}`).reverse();
        plot.append(svg("polygon", { points: [...upper, ...lower].join(" "), class: `band ${group.group}` }));
      }
      for (const seed of recipe.seeds.length > 1 && !baseline ? group[`${key}_by_seed`] : []) plot.append(...curve(seed, x, y, middle, `curve seed ${group.group}`));
      plot.append(...curve(values, x, y, middle, `curve ${group.group}`));
      values.forEach((value, at) => {
        if (value === null) return;
        const words =
          `${group.group}, steps ${recipe.first_step[at]} to ${recipe.last_step[at]}: ${format(value)} ` +
          `(${range(low[at], high[at], format)}), ${count(group[measure.groups][at])} groups of rollouts`;
        plot.append(withTip(svg("circle", { cx: x(middle[at]), cy: y(value), r: 3, class: `fill ${group.group}` }), words));
      });
    }
  });
  const rows = recipe.groups.flatMap((group) => [
    ...middle.map((_, at) => [
      group.group, `${recipe.first_step[at]} to ${recipe.last_step[at]}`, count(group[measure.groups][at]),
      format(group[key][at]), range(group[`${key}_low`][at], group[`${key}_high`][at], format),
    ]),
    [group.group, "all", count(group[measure.groups].reduce((sum, each) => sum + each, 0)), format(group.whole[key]), range(group.whole[`${key}_low`], group.whole[`${key}_high`], format)],
  ]);
  const lines = baseline ? `; dashed lines: ${visible(baseline.recipe)}` : recipe.seeds.length > 1 ? " (thin lines)" : "";
  return figure(
    name,
    el(
      "div", null,
      legend(tags.filter((tag) => recipe.groups.some((group) => group.group === tag))),
      drawn,
      numbers(["group", "steps", "groups of rollouts", measure.axis, "95 % interval"], rows),
    ),
    `${seeds}${lines}; windows of ${plural(recipe.steps_per_window, "step")}; groups by ${recipe.groups_from}. ` +
      `${measure.words} Bands: 95 % intervals of the mean, none below 5 groups of rollouts.` +
      (mostClipped(recipe) === 0 ? " Not one token was clipped in the loss." : ""),
    wide,
  );
}

const middles = (recipe) => recipe.first_step.map((first, at) => (first + recipe.last_step[at]) / 2);
const permille = (value) => (value === null ? DASH : `${(1000 * value).toFixed(2)} ‰`);
const range = (low, high, format) => (low === null ? "no interval" : `${format(low)} to ${format(high)}`);

// Positions of consecutive known values.
function segments(values) {
  const found = [];
  values.forEach((value, at) => {
    if (value === null) return;
    if (at && values[at - 1] !== null && found.length) found.at(-1).push(at);
    else found.push([at]);
  });
  return found;
}

function curve(values, x, y, middle, kind) {
  return segments(values).map((part) =>
    svg("polyline", { points: part.map((at) => `${x(middle[at])},${y(values[at])}`).join(" "), class: kind }),
  );
}

function reasoning(facts) {
  if (facts === null) return [];
  const rows = facts.groups.map((group) => [
    tagLabel(group.group), count(group.items), rate(group.mean, 2), rate(group.median, 2),
    between(group.lower_quartile, group.upper_quartile, 2),
  ]);
  return [
    figure(
      "Reasoning quality of correct answers",
      el("div", { class: "scroll" }, table(["group", "items judged", "mean", "median", "quartiles"], rows)),
      `As judged by ${facts.judge ? visible(facts.judge) : "curate judge"}, 0 to 5: a right answer by wrong reasoning scores low. ` +
        passes(facts.agreement),
    ),
  ];
}

function passes(agreement) {
  if (!agreement?.rollouts) return "How far the judge agrees with itself is not known.";
  const { rollouts, equal, weighted_kappa: kappa } = agreement;
  return (
    `In two passes ${plural(rollouts, "rollout")} got the same score in ${percent(equal)} of cases ` +
    `(quadratic-weighted kappa ${rate(kappa, 2)}; near 0 the scores say nothing).`
  );
}
