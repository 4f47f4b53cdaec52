/* Where training leads: pass rate now against the forecast, and against the outcome where it is known. */

function forecastFigure(facts, tags, open) {
  const { points } = facts;
  const shown = points.item.length;
  const title = "Pass rate now and after training";
  if (!shown) return figure(title, el("p", { class: "muted" }, `Not shown: ${visible(facts.why_none ?? "nothing was judged")}.`), null, true);
  const drawn = el("div", null);
  const chosen = { colour: "tag", marks: facts.outcomes ? "both" : "forecast" };
  const show = () => drawn.replaceChildren(
    legend(tags.filter((tag) => points[chosen.colour].includes(tag))),
    forecastChart(facts, points[chosen.colour], chosen.marks, open),
  );
  show();
  const choice = (name, label, options) => [
    `${label} `,
    el(
      "select", { "aria-label": label, "data-choice": name, onchange: (event) => ((chosen[name] = event.target.value), show()) },
      options.map(([value, words]) => el("option", { value }, words)),
    ),
    " ",
  ];
  const choices = facts.outcomes && el(
    "p", { class: "choice" },
    choice("marks", "show", [["both", "forecast and outcome"], ["forecast", "forecast"], ["outcome", "outcome"]]),
    points.confirmed ? choice("colour", "colour by", [["tag", "predicted tag"], ["confirmed", "confirmed tag"]]) : [],
  );
  const sample = shown < points.of
    ? `${count(shown)} of ${count(points.of)} items, as many of each tag as there are: density here is not that of the dataset. `
    : "";
  return figure(
    title,
    el("div", null, choices, drawn),
    [
      el("strong", { class: "expected" }, expectedWords(facts), outcomeWords(facts)),
      ` ${sample}Above the diagonal training lifts an item; dashed lines are τ = ${facts.tau}. A dot's vertical line is its ` +
        `${percent(facts.confidence).replace(".0", "")} interval, shown where the pointer is` +
        (facts.outcomes ? "; a ring is the outcome, the mean over the seeds" : "") + ". Click a point for its item.",
    ],
    true,
  );
}

// Of the hard items: expected to reach τ, not expected to, undecided.
function expectedWords(facts) {
  return (
    `Of ${plural(facts.hard_items, "hard item")} ${count(facts.reach_tau)} are expected to reach τ (p_unlearnable at most ${facts.doubt}), ` +
    `${count(facts.stay_below)} not (at least ${1 - facts.doubt}), and ${count(facts.undecided)} are undecided` +
    (facts.without_forecast ? `; ${count(facts.without_forecast)} have no forecast` : "") + "."
  );
}

function outcomeWords({ outcomes }) {
  if (!outcomes) return "";
  const { reach_tau: reach, stay_below: stay, undecided } = outcomes;
  return (
    ` After GRPO ${count(reach.reached_tau)} of ${count(reach.items)} expected to reach it did, ${count(stay.items - stay.reached_tau)} of ` +
    `${count(stay.items)} expected to stay below did, ${count(undecided.reached_tau)} of ${count(undecided.items)} undecided ones reached it.`
  );
}

// Both axes are logarithmic, with a place of its own for 0.
function forecastChart({ points, tau, confidence }, words, marks, open) {
  const shown = points.item.length;
  // Each axis begins below its smallest number; the few below 0.001 on the upright one stand with 0.
  const first = (values) => Math.min(tau / 4, ...values.filter((each) => each !== null && each > 0)) / 1.5;
  const lowX = Math.max(1e-4, first(points.pass_rate));
  const lowY = Math.max(1e-3, first([...points.forecast, ...(marks === "forecast" ? [] : points.final_pass_rate)]));
  return chart(
    `Pass rate now against the forecast of ${plural(shown, "item")}`,
    400,
    (plot, width, height) => {
      const [left, right, bottom, top] = [52, width - 12, height - 42, 26];
      const logarithmic = (low, start, end) => {
        const scale = linear(Math.log10(low), 0, start, end);
        return (value) => scale(Math.log10(Math.min(1, value)));
      };
      const [inner, floor] = [left + 36, bottom - 22];
      const [onX, onY] = [logarithmic(lowX, inner, right), logarithmic(lowY, floor, top)];
      const x = (value) => (value >= lowX ? onX(value) : left + 14);
      const y = (value) => (value >= lowY ? onY(value) : bottom - 7);
      const powers = (low) => [-4, -3, -2, -1, 0].map((power) => 10 ** power).filter((value) => value >= low);
      const named = (value) => String(Number(value.toPrecision(1)));
      yAxis(plot, y, powers(lowY), left, right, named);
      plot.append(text(left - 6, y(0) + 4, lowY > 1e-3 ? "0" : "less", "tick", "end"));
      xAxis(plot, x, [0, ...powers(lowX)], bottom, named);
      const even = Math.max(lowX, lowY);
      plot.append(
        line(left, bottom, right, bottom, "axis"),
        line(onX(even), onY(even), onX(1), onY(1), "diagonal"),
        line(x(tau), top - 8, x(tau), bottom, "threshold"),
        line(left, y(tau), right, y(tau), "threshold"),
        text(x(tau) + 5, top - 3, `τ = ${tau}`, "mark", "start"),
      );
      axisName(plot, (left + right) / 2, height - 4, "pass rate now (log scale)");
      axisName(plot, 4, top - 15, marks === "outcome" ? "pass rate after GRPO (log scale)" : "forecast of the pass rate (log scale)", "start");
      for (let at = 0; at < shown; at++) {
        const tag = words[at] ?? "untagged";
        const [now, forecast, final] = [points.pass_rate[at], points.forecast[at], points.final_pass_rate?.[at] ?? null];
        if (now === null || (marks === "outcome" && final === null)) continue;
        const mark = svg("g", { class: "point forecast-point" });
        // Those that were never right would hide each other: spread evenly, by their place alone.
        const px = x(now) + (now === 0 ? 10 * (((at * 0.618) % 1) - 0.5) * 2 : 0);
        if (marks !== "outcome") {
          mark.append(line(px, y(points.forecast_low[at]), px, y(points.forecast_high[at]), `whisker ${tag} on-hover`));
          if (marks === "both" && final !== null) mark.append(line(px, y(forecast), px, y(final), `step ${tag} ${shown > 100 ? "faint" : ""}`));
        }
        if (marks !== "forecast" && final !== null) mark.append(svg("circle", { cx: px, cy: y(final), r: 3.5, class: `hollow outcome ${tag}` }));
        if (marks !== "outcome") mark.append(svg("circle", { cx: px, cy: y(forecast), r: 4, class: `fill ${tag}` }));
        const told =
          `${tag}, item ${visible(points.item_id[at])}\n` +
          `pass rate now ${rate(now)} (${between(points.pass_rate_low[at], points.pass_rate_high[at])})\n` +
          `forecast ${rate(forecast)} (${between(points.forecast_low[at], points.forecast_high[at])}, ${percent(confidence).replace(".0", "")})\n` +
          (points.p_unlearnable[at] === null ? "" : `p_unlearnable ${rate(points.p_unlearnable[at], 2)}\n`) +
          `lift ${rate(points.lift[at], 2)} (${between(points.lift_low[at], points.lift_high[at], 2)})` +
          (final === null ? "" : `\nafter GRPO ${rate(final)}`);
        mark.addEventListener("click", () => open(points.item[at]));
        plot.append(withTip(mark, told));
      }
    },
  );
}
