/* The first question: what is in this dataset? Tags, pass rates, and tags by source column. */

function showDataset(facts, tags) {
  const { dataset, run, certainty } = facts;
  const byTag = Object.fromEntries(dataset.tags.map((each) => [each.tag, each]));
  const hard = dataset.items - byTag.easy.items;
  document.title = `${visible(run.dataset)} · curate report`;
  document.getElementById("title").append(visible(run.dataset));
  document.getElementById("subtitle").append(
    `${plural(dataset.items, "item")} probed with ${visible(run.model)}` +
      (run.created ? ` on ${visible(run.created).slice(0, 10)}` : ""),
  );
  add(
    document.getElementById("dataset"),
    el(
      "p",
      { class: "lede" },
      `The policy already solves ${count(byTag.easy.items)} of ${plural(dataset.items, "item")} at a ` +
        `pass rate of ${run.tau} or more. Of the ${count(hard)} hard ones, ` +
        `${count(byTag.learnable.items)} are predicted learnable and ` +
        `${count(byTag.unlearnable.items)} unlearnable, ${count(byTag.no_positive.items)} gave no ` +
        `correct answer, and for ${count(byTag.undetermined.items)} the evidence does not decide.`,
    ),
    rowsNote(dataset),
    composition(dataset, run, tags),
    answersNote(dataset.answers),
    el("div", { class: "figures" }, distribution(dataset.pass_rates, certainty.pass_rates.rate_and_counts_on_two_sides_of_tau, tags), sources(dataset.sources, tags)),
  );
}

function rowsNote(dataset) {
  if (dataset.rows === dataset.items) return null;
  const parts = [`${plural(dataset.rows, "row")} in the dataset`];
  if (dataset.rows_probed > dataset.items)
    parts.push(`${count(dataset.rows_probed)} probed, of which some share prompt and answer and are one item`);
  if (dataset.rows_beyond_limit) parts.push(`${count(dataset.rows_beyond_limit)} beyond --limit and not probed`);
  if (dataset.rows_rejected) parts.push(`${count(dataset.rows_rejected)} rejected`);
  const rejected = dataset.rejected_for.map((each) => [visible(each.reason), count(each.rows)]);
  if (dataset.rejected_for_other_reasons)
    rejected.push(["other reasons", count(dataset.rejected_for_other_reasons)]);
  return el(
    "div",
    null,
    el("p", { class: "muted" }, `${parts.join("; ")}.`),
    rejected.length
      ? el("details", { class: "numbers" }, el("summary", null, "Why rows were rejected"), table(["reason", "rows"], rejected))
      : null,
  );
}

// Golds that look wrong, and what the items did that were never right.
function answersNote(answers) {
  if (!answers.lines.length) return null;
  const rows = answers.suspects.map((each) => [count(each.row), visible(each.gold), visible(each.majority)]);
  return el(
    "div",
    null,
    answers.lines.map((line) => el("p", { class: "muted" }, visible(line))),
    rows.length
      ? el("details", { class: "numbers" }, el("summary", null, "Golds that look wrong"), table(["row", "gold", "what the rollouts answer"], rows))
      : null,
  );
}

function composition(dataset, run, tags) {
  const split = Object.fromEntries(dataset.tags.map((each) => [each.tag, each.items]));
  const confirmed = dataset.tags.some((each) => each.confirmed_items !== null);
  const head = ["predicted tag", "items", "share", "meaning"];
  if (confirmed) head.splice(3, 0, "confirmed");
  const rows = dataset.tags.map((each) => {
    const cells = [tagLabel(each.tag), count(each.items), percent(each.share), TAG_MEANINGS[each.tag](run.tau)];
    if (confirmed) cells.splice(3, 0, count(each.confirmed_items));
    return cells;
  });
  return el(
    "div",
    { class: "composition" },
    splitBar(split, tags, dataset.items),
    el("div", { class: "scroll" }, table(head, rows, { class: "tags" })),
  );
}

function distribution(facts, twoSides, tags) {
  const bars = facts.bins.map((bin, number) => ({
    tags: bin.tags,
    tip:
      `${number === 0 ? "no correct rollout" : `pass rate ${rate(bin.low, 2)} to ${rate(bin.high, 2)}`}: ` +
      `${plural(bin.items, "item")}${bin.items ? ` (${splitText(bin.tags, tags)})` : ""}`,
  }));
  const most = Math.max(1, ...facts.bins.map((bin) => bin.items));
  const drawn = chart(
    `Histogram of the pass rates of ${plural(facts.items, "item")}; τ is ${facts.tau}`,
    240,
    (plot, width, height) => {
      const [left, right, bottom, top] = [46, width - 8, height - 40, 26];
      const y = linear(0, most, bottom, top);
      y.top = top;
      yAxis(plot, y, ticks(0, most).filter(Number.isInteger), left, right);
      // The items that were never right stand apart: 0 of n is no small pass rate.
      const bar = Math.min(34, (right - left) / 22);
      const first = left + bar + 14;
      const x = linear(0, 1, first, right);
      stackedBars(
        plot, bars, tags,
        (number) => (number === 0 ? [left + 4, bar] : [x(facts.bins[number].low) + 1, (right - first) / 20 - 2]),
        y, bottom,
      );
      plot.append(line(left, bottom, right, bottom, "axis"), line(x(facts.tau), top - 8, x(facts.tau), bottom, "threshold"));
      plot.append(text(x(facts.tau) + 5, top - 3, `τ = ${facts.tau}`, "mark", "start"));
      xAxis(plot, x, width < 420 ? [0.2, 0.6, 1] : [0.2, 0.4, 0.6, 0.8, 1], bottom, String);
      plot.append(text(left + 4 + bar / 2, bottom + 17, "none", "tick"));
      axisName(plot, (first + right) / 2, height - 4, "pass rate (bins of 0.05)");
      axisName(plot, left - 40, top - 15, "items", "start");
    },
  );
  const present = tags.filter((tag) => facts.bins.some((bin) => bin.tags[tag]));
  return figure(
    "Pass rates",
    el(
      "div", null, legend(present), drawn,
      numbers(
        ["pass rate", "items", ...present],
        facts.bins.map((bin, number) => [
          number === 0 ? "no correct rollout" : `${rate(bin.low, 2)} to ${rate(bin.high, 2)}`,
          count(bin.items), ...present.map((tag) => count(bin.tags[tag])),
        ]),
      ),
    ),
    `${plural(facts.items, "item")}, mean ${rate(facts.mean)}, median ${rate(facts.median)}` +
      (facts.not_measured ? `; ${count(facts.not_measured)} not measured` : "") +
      ". ‘none’: not one correct rollout." +
      (twoSides ? ` Easy and hard are told apart by counts; of ${plural(twoSides, "item")} the pass rate, freed of the bias of stopping early, lies on the other side of τ.` : ""),
  );
}

function sources(facts, tags) {
  if (!facts.columns.length)
    return figure("Tags by source", el("p", { class: "muted" }, `Not shown: ${visible(facts.note)}.`), null);
  const chosen = el("div", { class: "scroll" });
  const show = (column) => {
    const most = Math.max(...column.values.map((each) => each.items));
    chosen.replaceChildren(
      el(
        "table",
        { class: "bars" },
        el("thead", null, el("tr", null, [column.column, "tags", "items", "mean pass rate"].map((head) => el("th", { scope: "col" }, oneLine(head))))),
        el(
          "tbody", null,
          column.values.map((each) =>
            el(
              "tr", null,
              el("th", { scope: "row" }, each.value === null ? el("em", null, "no value") : el("bdi", null, oneLine(each.value))),
              el("td", { class: "bar", "aria-label": splitText(each.tags, tags) }, splitBar(each.tags, tags, most)),
              el("td", null, count(each.items)),
              el("td", null, rate(each.mean_pass_rate)),
            ),
          ),
        ),
      ),
    );
  };
  show(facts.columns[0]);
  const choice = el(
    "select",
    { "aria-label": "Column of the dataset", onchange: (event) => show(facts.columns[event.target.value]) },
    facts.columns.map((column, number) => el("option", { value: number }, oneLine(column.column))),
  );
  return figure(
    "Tags by source",
    el("div", null, facts.columns.length > 1 ? el("p", null, "by column ", choice) : null, chosen),
    "Bars are as long as a value has items, split by predicted tag.",
  );
}
