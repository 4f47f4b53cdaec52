/* Two policies on the same items: what `curate compare` found, a group a line. */

const COMPARED = {
  pass_rate: { title: "Pass rate", from: 0, to: 1, digits: 3 },
  gradient_similarity: { title: "Gradient similarity", from: 0, to: 0.1, digits: 3 },
  forecast_pass_rate: { title: "Forecast", from: 0, to: 1, digits: 3 },
  lift: { title: "Lift", from: 0, to: 1, digits: 2 },
  reasoning_quality: { title: "Reasoning quality", from: 0, to: 5, digits: 2 },
};

function comparisons(found) {
  return found.map((comparison) => {
    const { before, after, groups } = comparison;
    const names = Object.keys(COMPARED).filter((name) => groups.some((group) => group[name]?.items));
    return figure(
      `Before and after: ${visible(before.run)} and ${visible(after.run)}`,
      el("div", { class: "panels" }, names.map((name) => comparisonPanel(groups, name))),
      [
        `Rings: ${visible(before.run)} (${visible(before.model)}); dots: ${visible(after.run)} (${visible(after.model)}). ` +
          `Means over the items that have both; groups by ${visible(comparison.groups_from)}.`,
        ...comparison.warnings.map((words) => el("p", null, "Note: ", coded(words), ".")),
      ],
      true,
    );
  });
}

// A measure of the groups that have it.
function comparisonPanel(every, name) {
  const { title, digits } = COMPARED[name];
  const groups = every.filter((group) => group[name].items);
  const known = groups.flatMap((group) => [group[name].before, group[name].after]);
  const [least, most] = [Math.min(COMPARED[name].from, ...known), Math.max(COMPARED[name].to, ...known)];
  const [step, top] = [28, 14];
  const bottom = top + groups.length * step;
  const drawn = chart(`${title} before and after, by group`, bottom + 42, (plot, width) => {
    const [left, right] = [104, width - 58];
    const x = linear(least, most, left, right);
    xAxis(plot, x, ticks(least, most, width < 420 ? 3 : 5), bottom, String);
    plot.append(line(left, bottom, right, bottom, "axis"));
    axisName(plot, (left + right) / 2, bottom + 36, title.toLowerCase());
    groups.forEach(({ group, [name]: found }, number) => {
      const y = top + number * step + step / 2;
      const words =
        `${group}, ${plural(found.items, "item")}: ${rate(found.before, digits)} before, ${rate(found.after, digits)} after; ` +
        `change ${signed(found.change, digits)} (${between(found.low, found.high, digits)})`;
      const mark = svg(
        "g", { class: group },
        line(left, y, right, y, "grid"),
        line(x(found.before), y, x(found.after), y, "step"),
        svg("circle", { cx: x(found.before), cy: y, r: 4.5, class: "hollow" }),
        svg("circle", { cx: x(found.after), cy: y, r: 4.5, class: "fill" }),
        svg("rect", { x: left, y: y - step / 2, width: right - left, height: step, class: "hit" }),
      );
      plot.append(text(left - 10, y + 4, group, "tick", "end"), withTip(mark, words), text(right + 54, y + 4, signed(found.change, digits), "tick", "end"));
    });
  });
  const rows = groups.map(({ group, [name]: found }) => [
    group, count(found.items), rate(found.before, digits), rate(found.after, digits),
    signed(found.change, digits), between(found.low, found.high, digits),
  ]);
  return el("div", null, drawn, numbers(["group", "items", "before", "after", "change", "95 % interval of the change"], rows));
}

const signed = (value, digits) => (value > 0 ? `+${rate(value, digits)}` : rate(value, digits));
