/* What is missing for the items that training is not known to solve, and clusters of them. */

const CLUSTER_VERDICTS = {
  candidate: "nobody else teaches it: a candidate for mid-training",
  perhaps: "perhaps nobody else teaches it: not certain",
  taught: "others teach what it needs: no candidate",
};

function gapFigures(facts, open) {
  if (facts.why_none || !facts.items) return [];
  const reasons = el(
    "div", { class: "scroll" },
    table(
      ["what is missing", "certain", "likely", "meaning"],
      facts.reasons.map(({ reason, certain, likely, meaning }) => [reason, count(certain), count(likely), meaning]),
      { class: "reasons" },
    ),
  );
  const figures = [
    figure(
      "What is missing",
      reasons,
      [
        `${plural(facts.items, "item")} that training is not known to solve: unlearnable ones, and undetermined hard ones that were right now and then. ` +
          "Likely: by the values without their errors. An item says what is missing for it when it is opened; ",
        el("code", null, "curate gaps RUN"), " writes all of it.",
        ...facts.notes.map((words) => el("p", null, "Note: ", visible(words), ".")),
      ],
      true,
    ),
  ];
  if (facts.clusters.length) figures.push(clusterFigure(facts, open));
  return figures;
}

// Items that would teach each other, the largest clusters first, with examples to open.
function clusterFigure({ clusters, of_clusters: all }, open) {
  const rows = clusters.map((each, number) => [
    String(number + 1), count(each.items), CLUSTER_VERDICTS[each.verdict],
    each.inside === null ? DASH : `${rate(each.inside, 2)} (${between(each.inside_low, each.inside_high, 2)})`,
    each.examples.map((at, n) => [n ? " " : null, el("button", { type: "button", class: "quiet", onclick: () => open(at) }, `example ${n + 1}`)]),
  ]);
  const left = all - clusters.length;
  return figure(
    "Items that would teach each other",
    el("div", { class: "scroll" }, table(["cluster", "items", "verdict", "inside", "examples"], rows, { class: "clusters" })),
    "Inside: the share of its gradient within the span of what training takes of the items outside it. Where that is surely little, nobody in this dataset teaches the cluster." +
      (left > 0 ? ` ${count(left)} smaller clusters are not shown.` : ""),
    true,
  );
}
