/* The second question: how sure are we? Key figures, and the order of what is drawn. */

function showCertainty(facts, tags, open) {
  const { certainty, run } = facts;
  add(
    document.getElementById("certainty"),
    keyFigures(certainty, facts),
    el(
      "div",
      { class: "figures" },
      forecastFigure(certainty.forecast, tags, open),
      ...gapFigures(certainty.gaps, open),
      ...confirmation(certainty.confirmation, tags),
      ...rollouts(certainty.rollouts, tags),
      ...rewards(certainty.rewards, tags, certainty.confirmation),
      ...reasoning(certainty.reasoning_quality),
      ...comparisons(certainty.comparisons),
      scatter(certainty.similarities, run.tau, tags, open),
      ...cosines(certainty.gradients, open),
    ),
    facts.not_measured.length
      ? el(
          "div", { class: "note" },
          el("h3", null, "Not measured"),
          el("ul", null, facts.not_measured.map((text) => el("li", null, coded(text)))),
        )
      : null,
  );
}

function keyFigures(certainty, { dataset }) {
  const { pass_rates: rates, similarities, confirmation, forecast } = certainty;
  const share = (part, whole) => (whole ? percent(part / whole) : DASH);
  const { least, median, most } = rates.rollouts_per_item;
  const cards = [
    [
      `${count(rates.interval_contains_tau)} of ${count(rates.items)}`,
      "pass-rate intervals contain τ: whether these items are easy or hard is open at 95 %",
      (least === most ? `${plural(most, "rollout")} an item` : `${count(least)} to ${count(most)} rollouts an item, median ${count(median)}`) +
        (rates.expected_label_changes ? `; with all rollouts about ${rate(rates.expected_label_changes, 1)} items would get another label` : ""),
    ],
    forecast.why_none
      ? ["no forecast", visible(forecast.why_none), ""]
      : [
          `${count(forecast.reach_tau)} reach τ, ${count(forecast.stay_below)} do not`,
          `of ${plural(forecast.hard_items, "hard item")}, those without a correct rollout (no_positive) counted in, as forecast with a doubt of ${forecast.doubt} at most`,
          `${count(forecast.undecided)} undecided` + (forecast.without_forecast ? `, ${count(forecast.without_forecast)} without a forecast` : ""),
        ],
    [
      `${count(similarities.mostly_noise)} of ${count(similarities.measured)}`,
      "mean gradients of an item are more sampling noise than signal (reliability below 0.5)",
      `median reliability ${rate(similarities.reliability.median, 2)}`,
    ],
    [
      share(rates.truncated, rates.rollouts),
      "of the rollouts were cut at the length limit and count as wrong",
      `${count(rates.rollouts)} rollouts, ${count(rates.correct)} correct, ${count(rates.not_judged)} could not be judged`,
    ],
    confirmation === null
      ? ["not confirmed", "no GRPO run has tested these predictions on this model", coded("`curate validate`, then `curate confirm`")]
      : [
          `${count(confirmation.confirmed.learnable)} learned, ${count(confirmation.confirmed.unlearnable)} not`,
          `of ${count(confirmation.hard_items)} hard items, in all of ${plural(confirmation.seeds.length, "GRPO run")}`,
          `recipe ${visible(confirmation.recipe)}`,
        ],
  ];
  return el(
    "ul", { class: "key" },
    cards.map(([value, meaning, detail]) =>
      el("li", null, el("strong", null, value), el("span", null, meaning), el("small", null, detail)),
    ),
  );
}

// --- Where the rollouts went -----------------------------------------------------------------

function rollouts(facts, tags) {
  const total = facts.by_tag.reduce((sum, each) => sum + each.rollouts, 0);
  const most = Math.max(1, ...facts.by_tag.map((each) => each.rollouts));
  const byTag = figure(
    "Where the rollouts went",
    el(
      "div", { class: "scroll" },
      el(
        "table", { class: "bars" },
        el("thead", null, el("tr", null, ["tag", "", "rollouts", "share", "an item", "correct", "cut"].map((head) => el("th", { scope: "col" }, head)))),
        el(
          "tbody", null,
          facts.by_tag.map((each) =>
            el(
              "tr", null,
              el("th", { scope: "row" }, tagLabel(each.tag)),
              el("td", { class: "bar" }, splitBar({ [each.tag]: each.rollouts }, tags, most)),
              el("td", null, count(each.rollouts)),
              el("td", null, percent(each.share)),
              el("td", null, each.items ? count(Math.round((10 * each.rollouts) / each.items) / 10) : DASH),
              el("td", null, count(each.correct)),
              el("td", null, count(each.truncated)),
            ),
          ),
        ),
      ),
    ),
    `${count(total)} rollouts in all, by the tag that their item has in the end.`,
  );
  if (facts.by_round === null) return [byTag];
  const rounds = facts.by_round;
  const highest = Math.max(1, ...rounds.map((round) => round.rollouts));
  const drawn = chart(`Rollouts by round, ${plural(rounds.length, "round")}`, 220, (plot, width, height) => {
    const [left, right, bottom, top] = [62, width - 8, height - 40, 28];
    const y = linear(0, highest, bottom, top);
    y.top = top;
    yAxis(plot, y, ticks(0, highest).filter(Number.isInteger), left, right);
    const step = (right - left) / rounds.length;
    const bar = Math.min(56, 0.7 * step);
    stackedBars(
      plot,
      rounds.map((round) => ({
        tags: round.tags,
        tip: `round ${round.round}: ${plural(round.rollouts, "rollout")} of ${plural(round.items, "item")} (${splitText(round.tags, tags)})`,
      })),
      tags, (number) => [left + number * step + (step - bar) / 2, bar], y, bottom,
    );
    plot.append(line(left, bottom, right, bottom, "axis"));
    rounds.forEach((round, number) => plot.append(text(left + (number + 0.5) * step, bottom + 17, String(round.round), "tick")));
    axisName(plot, (left + right) / 2, height - 4, "round");
    axisName(plot, left - 56, top - 16, "rollouts", "start");
  });
  const present = tags.filter((tag) => rounds.some((round) => round.tags[tag]));
  const byRound = figure(
    "Rollouts by round",
    el(
      "div", null, legend(present), drawn,
      numbers(
        ["round", "items", "rollouts", ...present],
        rounds.map((round) => [count(round.round), count(round.items), count(round.rollouts), ...present.map((tag) => count(round.tags[tag]))]),
      ),
    ),
    rounds.length === 1
      ? "One round: every item got as many rollouts."
      : "Each further round takes the items that more rollouts can still decide twice as far.",
  );
  return [byTag, byRound];
}
