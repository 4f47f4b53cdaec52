/* The paper's measurement: gradient similarity against pass rate, and cosines between gradients. */

function scatter(facts, tau, tags, open) {
  const { points } = facts;
  const shown = points.item.length;
  const title = "Gradient similarity and pass rate";
  if (!shown) return figure(title, el("p", { class: "muted" }, `Not measured: ${visible(facts.why_none ?? "no item has two correct rollouts")}.`), null, true);
  const drawn = el("div", null);
  const show = (words) => drawn.replaceChildren(
    legend(tags.filter((tag) => words.includes(tag))),
    scatterChart(facts, tau, words, open),
  );
  show(points.tag);
  const colour = el(
    "select",
    { "aria-label": "Colour by", onchange: (event) => show(points[event.target.value]) },
    el("option", { value: "tag" }, "predicted tag"), el("option", { value: "confirmed" }, "confirmed tag"),
  );
  const sample = shown < points.of
    ? `${count(shown)} of ${count(points.of)} items, as many of each tag as there are: density here is not that of the dataset. `
    : `All ${count(shown)} items that have a similarity. `;
  return figure(
    title,
    el("div", null, points.confirmed ? el("p", { class: "choice" }, "colour by ", colour) : null, drawn),
    `The paper's measurement, reported and no longer decisive: tags go by the forecast. ${sample}Lines are 95 % intervals. ` +
      `${plural(facts.with_one_correct_rollout, "item")} with one correct rollout and ${count(facts.without_correct_rollout)} with none have no similarity. ` +
      "Click a point for its item.",
    true,
  );
}

function scatterChart({ points }, tau, words, open) {
  const shown = points.item.length;
  const known = [...points.similarity_low, ...points.similarity_high, ...points.similarity].filter((each) => each !== null);
  const [low, high] = [Math.min(0, ...known), Math.max(0, ...known)];
  return chart(
    `Gradient similarity against pass rate of ${plural(shown, "item")}, with 95 % intervals`,
    340,
    (plot, width, height) => {
      const [left, right, bottom, top] = [46, width - 10, height - 40, 28];
      const y = linear(low, high, bottom, top);
      // A square root gives the hard items room and still has a place for 0.
      const root = linear(0, 1, left + 6, right - 6);
      const x = (value) => root(Math.sqrt(Math.max(0, value)));
      yAxis(plot, y, ticks(low, high, 6), left, right, (value) => String(value).replace("-", "−"));
      plot.append(line(left, y(0), right, y(0), "axis"), line(x(tau), top - 10, x(tau), bottom, "threshold"));
      plot.append(text(x(tau) + 5, top - 4, `τ = ${tau}`, "mark", "start"));
      xAxis(plot, x, width < 420 ? [0, 0.1, 0.5, 1] : [0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1], bottom, String);
      axisName(plot, (left + right) / 2, height - 4, "pass rate (square-root scale)");
      axisName(plot, left - 40, top - 16, "gradient similarity", "start");
      const fine = shown > 150 ? "faint" : "";
      for (let at = 0; at < shown; at++) {
        const tag = words[at] ?? "untagged";
        const [px, py] = [x(points.pass_rate[at]), y(points.similarity[at])];
        const mark = svg("g", { class: "point" });
        if (points.pass_rate_low[at] !== null)
          mark.append(line(x(points.pass_rate_low[at]), py, x(points.pass_rate_high[at]), py, `whisker across ${tag} ${fine}`));
        if (points.similarity_low[at] !== null)
          mark.append(line(px, y(points.similarity_low[at]), px, y(points.similarity_high[at]), `whisker ${tag} ${fine}`));
        mark.append(svg("circle", { cx: px, cy: py, r: 4, class: `fill ${tag}` }));
        const told =
          `${tag}, item ${visible(points.item_id[at])}\n` +
          `pass rate ${rate(points.pass_rate[at])} (${between(points.pass_rate_low[at], points.pass_rate_high[at])})\n` +
          `similarity ${rate(points.similarity[at])} (${between(points.similarity_low[at], points.similarity_high[at])})\n` +
          `reliability ${rate(points.reliability[at], 2)}, ${plural(points.gradients[at], "correct rollout")}`;
        mark.addEventListener("click", () => open(points.item[at]));
        plot.append(withTip(mark, told));
      }
    },
  );
}

// --- Cosines ---------------------------------------------------------------------------------

function cosines(facts, open) {
  if (facts === null || !facts.blocks.groups.length) return [];
  const circular = facts.groups_from === "trainability"
    ? " The groups are predicted tags, and where the lift came from the gradients, they told learnable and unlearnable apart: those rows do not test the prediction."
    : " The groups are confirmed tags.";
  return [blocks(facts, circular), itemCosines(facts, open)];
}

function blocks(facts, circular) {
  const { blocks: found } = facts;
  // Where no group has a direction of its own, single rollouts are what is left to compare.
  const corrected = found.cosine.some((row) => row.some((value) => value !== null));
  const name = corrected ? "cosine" : "rollout_cosine";
  const most = Math.max(0.05, ...found[name].flat().filter((value) => value !== null).map(Math.abs));
  const cell = (value, low, high, scale) => {
    const drawn = el("td", null, el("b", null, rate(value, 2)), el("small", null, value === null ? "no direction" : between(low, high, 2)));
    if (value !== null) drawn.style.background = diverging(0.8 * value, scale);
    return drawn;
  };
  const rows = found.groups.map((group, row) =>
    el(
      "tr", null,
      el("th", { scope: "row" }, tagLabel(group), el("small", null, plural(found.items[row], "item"))),
      found.groups.map((_, column) =>
        cell(found[name][row][column], found[`${name}_low`][row][column], found[`${name}_high`][row][column], most),
      ),
    ),
  );
  return figure(
    "Mean cosine between groups",
    el(
      "div", { class: "scroll" },
      el(
        "table", { class: "blocks" },
        el("thead", null, el("tr", null, el("td", null), found.groups.map((group) => el("th", { scope: "col" }, tagLabel(group))))),
        el("tbody", null, rows),
      ),
    ),
    (corrected
      ? "Cosine between the directions of two items, sampling noise taken out; "
      : "Cosine between two correct rollouts of different items; ") +
      `95 % intervals from ${count(facts.resamples)} resamples of items, none below 5 items; an estimate may leave −1 to 1.${circular}`,
  );
}

function itemCosines(facts, open) {
  const { items } = facts;
  const size = items.item.length;
  const values = items.cosine.flat().filter((value) => value !== null).map(Math.abs).sort((a, b) => a - b);
  const most = Math.max(0.02, values[Math.floor(0.98 * (values.length - 1))] ?? 0);
  const canvas = el("canvas", { role: "img", "aria-label": `Cosines between ${plural(size, "item")}, by group` });
  const frame = el("div", { class: "heat" }, canvas);
  const draw = () => {
    const [warm, cold, ground] = ["var(--warm)", "var(--cold)", "var(--cell)"].map(resolved);
    canvas.width = canvas.height = size;
    const context = canvas.getContext("2d");
    const image = context.createImageData(size, size);
    items.cosine.flat().forEach((value, at) => {
      const strength = value === null ? 0 : Math.min(1, Math.abs(value) / most);
      const hue = value < 0 ? cold : warm;
      for (let part = 0; part < 3; part++) image.data[4 * at + part] = ground[part] + strength * (hue[part] - ground[part]);
      image.data[4 * at + 3] = 255;
    });
    context.putImageData(image, 0, 0);
  };
  draw();
  onTheme.push(draw);
  const runs = [];
  items.group.forEach((group, at) => {
    if (runs.at(-1)?.group === group) runs.at(-1).size++;
    else runs.push({ group, at, size: 1 });
  });
  for (const each of runs.slice(1))
    for (const [side, extent] of [["left", "column"], ["top", "row"]]) {
      const rule = el("i", { class: extent });
      rule.style[side] = `${(100 * each.at) / size}%`;
      frame.append(rule);
    }
  const side = el("div", { class: "heat-side" });
  for (const each of runs) {
    const label = el("span", { title: each.group }, swatch(each.group), each.size / size > 0.06 ? each.group : "");
    label.style.flexGrow = each.size;
    side.append(label);
  }
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const place = (offset, extent) => Math.min(size - 1, Math.max(0, Math.floor((size * offset) / extent)));
    return [place(event.clientY - box.top, box.height), place(event.clientX - box.left, box.width)];
  };
  canvas.addEventListener("pointermove", (event) => {
    const [row, column] = at(event);
    const named = (number) => `${items.group[number]} ${visible(items.item_id[number])}`;
    showTip(event, `${named(row)}\n${named(column)}\ncosine ${rate(items.cosine[row][column])}`);
  });
  canvas.addEventListener("pointerleave", () => (tip.hidden = true));
  canvas.addEventListener("click", (event) => open(items.item[at(event)[0]]));
  return figure(
    "Cosine between items",
    el(
      "div", null,
      el("div", { class: "heat-frame" }, side, frame),
      el("p", { class: "ramp" }, `−${rate(most, 2)}`, el("span", { "aria-hidden": "true" }), rate(most, 2)),
    ),
    `${plural(size, "item")}, at most 24 of each group, by gradient similarity within it. Mean cosine of a correct ` +
      `rollout of one and of the other, unbiased but noisy: two unrelated gradients differ from 0 by about ${rate(items.noise)}.`,
  );
}
