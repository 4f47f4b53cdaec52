/* One item: why it has its tag, its prompt, rollouts with verdicts, teachers and nearest items. */

class ItemView {
  constructor(data, facts) {
    Object.assign(this, { data, tau: facts.run.tau, forecast: facts.certainty.forecast });
    this.dialog = document.getElementById("item");
    this.dialog.addEventListener("close", () => this.table.back(this.at));
    // A click beside the panel closes it.
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) this.move(step);
    });
  }

  // Parsed when the first item is opened: most of the page's text is here.
  get rollouts() {
    this.parsed ??= JSON.parse(document.getElementById("rollouts-data").textContent);
    return this.parsed;
  }

  move(step) {
    const next = this.table.beside(this.at, step);
    if (next !== null) this.open(next);
  }

  open(at) {
    this.at = at;
    tip.hidden = true;
    const { columns, tags, sources } = this.data;
    const steps = [["←", "Previous item", -1], ["→", "Next item", 1]].map(([sign, label, step]) => {
      const next = this.table.beside(at, step);
      return el("button", { type: "button", class: "quiet", "aria-label": label, disabled: next === null ? "" : null, onclick: () => this.move(step) }, sign);
    });
    const close = el("button", { type: "button", class: "quiet", id: "close", onclick: () => this.dialog.close() }, "Close");
    const confirmed = columns.confirmed && columns.confirmed[at] >= 0 ? tags[columns.confirmed[at]] : null;
    const body = el(
      "div", { class: "panel", tabindex: "-1" },
      el(
        "header", null,
        el(
          "div", null,
          el("h2", { id: "item-title" }, tagLabel(tags[columns.tag[at]]), el("small", null, " predicted; ", confirmed ? ["confirmed ", tagLabel(confirmed)] : "not confirmed")),
          el("p", { class: "muted" }, `row ${count(columns.row[at])} · item ${visible(columns.id[at])}`,
            sources.filter((source) => source.codes[at] >= 0).map((source) => [" · ", el("bdi", null, `${oneLine(source.name)}: ${oneLine(source.values[source.codes[at]])}`)])),
        ),
        el("nav", { "aria-label": "Items" }, steps, close),
      ),
      el("p", { class: "reason" }, visible(this.reason(at))),
      this.data.gaps[at] ? el("p", { class: "gap" }, "What is missing: ", visible(this.data.gaps[at])) : null,
      this.measures(at),
      el("h3", null, "Prompt"), this.prompt(at),
      el("h3", null, "Gold answer"), quoted(columns.answer[at], this.data.cut_answers[at]),
      ...this.samples(at),
      ...this.teaching(at),
      ...this.nearest(at),
    );
    this.dialog.replaceChildren(body);
    if (!this.dialog.open) this.dialog.showModal();
    body.focus();
    body.scrollTop = 0;
  }

  // Reasons come as a pattern and the numbers that fill it.
  reason(at) {
    const { place, patterns, lines } = this.data.reasons;
    const [pattern, ...found] = lines[at].split("|");
    return patterns[pattern].split(place).map((part, number) => part + (found[number] ?? "")).join("");
  }

  measures(at) {
    const { columns } = this.data;
    const value = (name) => columns[name][at];
    const rows = [
      ["pass rate", `${rate(value("pass_rate"))} (${between(value("pass_rate_low"), value("pass_rate_high"))}), ${count(value("correct"))} of ${plural(value("judged"), "judged rollout")} correct`],
      ...this.expected(at),
      ["gradient similarity", value("similarity") === null ? `not measured: ${plural(value("gradients"), "correct rollout")} with a gradient, 2 are needed` :
        `${rate(value("similarity"))} (${between(value("similarity_low"), value("similarity_high"))}), ${plural(value("gradients"), "correct rollout")}, reliability ${rate(value("reliability"), 2)}`],
    ];
    if (columns.majority && value("majority")) rows.push(["most frequent answer", visible(value("majority"))]);
    if (columns.final_pass_rate) rows.push(["pass rate after GRPO", rate(value("final_pass_rate"))]);
    if (columns.reasoning_quality) rows.push(["reasoning quality", value("reasoning_quality") === null ? "not judged" : rate(value("reasoning_quality"), 2)]);
    return el("dl", { class: "measures" }, rows.map(([name, words]) => [el("dt", null, name), el("dd", null, words)]));
  }

  // What training is expected to make of the item: forecast, lift, teaching.
  expected(at) {
    const { columns } = this.data;
    const value = (name) => columns[name][at];
    const p = ["p_unlearnable", value("p_unlearnable") === null ? "none" : rate(value("p_unlearnable"))];
    if (!columns.forecast) return [["forecast", visible(this.forecast.why_none ?? "none")], p];
    const level = percent(this.forecast.confidence).replace(".0", "");
    const others = value("from_others");
    return [
      ["forecast", value("forecast") === null ? "none: too little was measured" :
        `${rate(value("forecast"))} after training (${between(value("forecast_low"), value("forecast_high"))}, ${level})`],
      p,
      ["lift", value("lift") === null ? "not measured: it is taken to be moved as the other hard items are" :
        `${rate(value("lift"), 2)} (${between(value("lift_low"), value("lift_high"), 2)})` +
          (others === null ? "" : `, of which others teach ${rate(others, 2)}`)],
      ["teaching", value("teaching") === null ? "not measured" : `${rate(value("teaching"), 2)}: what a hundred groups of it add to the log odds of ${this.forecast.teaching_for}, in units of lift`],
    ];
  }

  prompt(at) {
    const { prompt_start: start, prompt_end: end, columns, cut_prompts: cut } = this.data;
    const shared = (words) => (words ? el("span", { class: "shared", title: "the same for all items" }, visible(words)) : null);
    return el(
      "div", { class: "quote" },
      el("pre", { dir: "auto", tabindex: "0" }, shared(start), visible(columns.prompt[at]), cut[at] ? null : shared(end)),
      cutNote(columns.prompt[at], cut[at]),
    );
  }

  samples(at) {
    const { columns } = this.data;
    const { items, kinds, of_items: ofItems, most_of_each: most } = this.rollouts;
    const wrong = columns.judged[at] - columns.correct[at];
    const drawn = [columns.correct[at], wrong, columns.unjudged[at]];
    const head = el("h3", null, "Rollouts");
    const summary =
      `${count(drawn[0])} correct, ${count(drawn[1])} wrong` +
      (columns.truncated[at] ? ` (${count(columns.truncated[at])} cut at --max-tokens)` : "") +
      (drawn[2] ? `, ${count(drawn[2])} not judged` : "") + ".";
    const found = items[at];
    if (!found)
      return [head, el("p", { class: "note" }, `${summary} This page holds rollouts of ${count(ofItems)} of ${count(this.data.items)} items, as many of each tag as there are; this item's are in rollouts/*.parquet of the run folder.`)];
    const shown = kinds.map((_, kind) => found.filter((each) => each[0] === kind).length);
    const left = kinds.map((kind, number) => (drawn[number] > shown[number] ? `${count(shown[number])} of ${count(drawn[number])} ${kind}` : "")).filter(Boolean);
    return [
      head,
      el("p", { class: "muted" }, summary, left.length ? ` Shown: ${left.join(", ")}: the first ${most} different ones of each kind.` : ""),
      found.map(([kind, sample, verdict, finish, answer, completion, length]) =>
        el(
          "article", { class: `rollout kind-${kind}` },
          el("p", null, el("strong", null, visible(verdict ?? kinds[kind])), ` · sample ${count(sample)}`, answer === null ? "" : [" · answer found: ", el("bdi", { class: "answer" }, oneLine(answer))], finish && finish !== "stop" ? ` · finish: ${visible(finish)}` : ""),
          quoted(completion, length),
        ),
      ),
    ];
  }

  nearest(at) {
    const near = this.data.columns.nearest[at].filter((each) => each !== null);
    if (!near.length) return [];
    return [
      el("h3", null, "Nearest easy items by gradient"),
      el("p", { class: "muted" }, "For exploring: chosen on the rollouts that they are compared with, which flatters."),
      this.others(near.map((other) => [other, rate(this.data.columns.pass_rate[other])])),
    ];
  }

  // Who teaches the item, and whom it helps or hurts most.
  teaching(at) {
    const parts = [
      ["teachers", "Its strongest teachers"],
      ["helps", "Items that it helps most"],
      ["hurts", "Items that it hurts most"],
    ].map(([name, title]) => [title, this.data.pairs[name][at].filter(([other]) => other !== null)])
      .filter(([, found]) => found.length);
    if (!parts.length) return [];
    return [
      el("h3", null, "Teaching"),
      el("p", { class: "muted" }, "By gradient: what training on the one adds to the lift of the other, to first order. Single pairs are noisy."),
      parts.map(([title, found]) => [
        el("h4", null, title),
        this.others(found.map(([other, by]) => [other, by === null ? DASH : `${by > 0 ? "+" : ""}${rate(by, 2)}`])),
      ]),
    ];
  }

  // Other items with a number each, to open.
  others(found) {
    const { columns, tags } = this.data;
    return el(
      "ul", { class: "nearest" },
      found.map(([other, number]) =>
        el(
          "li", null,
          el("button", { type: "button", onclick: () => this.open(other) }, tagLabel(tags[columns.tag[other]]), el("span", { class: "muted" }, number), el("bdi", null, oneLine(columns.prompt[other].slice(0, 200)))),
        ),
      ),
    );
  }
}

// Untrusted text as it was written, and a line that says so where it was cut.
function quoted(words, length) {
  return el("div", { class: "quote" }, el("pre", { dir: "auto", tabindex: "0" }, visible(words) || el("em", null, "empty")), cutNote(words, length));
}

function cutNote(words, length) {
  return length ? el("p", { class: "cut" }, `Cut here: ${count(words.length)} of ${count(length)} characters are in this page.`) : null;
}
