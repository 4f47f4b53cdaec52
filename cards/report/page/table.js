/* The third question: show me an item. A table of all items, of which only the rows in sight exist. */

const ROW_HEIGHT = 34;
const SPARE_ROWS = 6;

class ItemTable {
  constructor(data, facts, open) {
    Object.assign(this, { data, open, tau: facts.run.tau });
    this.columns = this.chooseColumns(facts.certainty);
    this.order = new Int32Array(0);
    this.active = 0;
    this.rows = new Map();
    this.sort = { key: "row", down: false };
    this.filters = { words: "", tags: new Set(), confirmed: "", sources: data.sources.map(() => ""), low: null, high: null };
    this.build();
    this.refresh();
  }

  // Each column: its head, how wide, what it sorts by, and what its cell holds.
  chooseColumns({ similarities, forecast }) {
    const { columns, sources, tags } = this.data;
    const tagCell = (name) => (at) => (columns[name][at] < 0 ? DASH : tagLabel(tags[columns[name][at]]));
    // A number with its interval, on a scale from `from` to `to` with a mark at `rule`.
    const measured = (name, [from, to], rule, level = "95 %") => (at) => {
      const [value, low, high] = ["", "_low", "_high"].map((end) => columns[`${name}${end}`][at]);
      return el("span", { class: "measured" }, el("span", null, rate(value)), interval(value, low, high, from, to, rule, level));
    };
    const confidence = percent(forecast.confidence).replace(".0", "");
    const every = [
      { key: "row", head: "row", width: "64px", value: (at) => columns.row[at], cell: (at) => count(columns.row[at]) },
      { key: "tag", head: "tag", width: "132px", value: (at) => columns.tag[at], cell: tagCell("tag") },
      columns.confirmed && { key: "confirmed", head: "confirmed", width: "132px", value: (at) => (columns.confirmed[at] < 0 ? NaN : columns.confirmed[at]), cell: tagCell("confirmed") },
      { key: "pass_rate", head: "pass rate", width: "148px", value: (at) => columns.pass_rate[at], cell: measured("pass_rate", [0, 1], this.tau) },
      columns.forecast && { key: "forecast", head: "forecast", width: "148px", value: (at) => columns.forecast[at], cell: measured("forecast", [0, 1], this.tau, confidence) },
      columns.final_pass_rate && { key: "final_pass_rate", head: "after GRPO", width: "92px", value: (at) => columns.final_pass_rate[at], cell: (at) => rate(columns.final_pass_rate[at]) },
      { key: "correct", head: "correct", width: "92px", value: (at) => columns.correct[at], cell: (at) => `${count(columns.correct[at])} / ${count(columns.judged[at])}` },
      columns.lift && { key: "lift", head: "lift", width: "148px", value: (at) => columns.lift[at], cell: measured("lift", forecast.lift.range, 0) },
      { key: "similarity", head: "similarity", width: "148px", value: (at) => columns.similarity[at], cell: measured("similarity", similarities.range, 0) },
      { key: "p_unlearnable", head: "p_unlearnable", width: "116px", value: (at) => columns.p_unlearnable[at], cell: (at) => rate(columns.p_unlearnable[at]) },
      columns.reasoning_quality && { key: "reasoning_quality", head: "reasoning", width: "92px", value: (at) => columns.reasoning_quality[at], cell: (at) => rate(columns.reasoning_quality[at], 2) },
      ...sources.slice(0, 2).map((source, number) => ({
        key: `source-${number}`, head: oneLine(source.name), width: "130px",
        value: (at) => source.values[source.codes[at]] ?? null,
        cell: (at) => oneLine(source.values[source.codes[at]] ?? DASH),
      })),
      { key: "prompt", head: "prompt", width: "minmax(300px, 1fr)", value: (at) => columns.prompt[at].trimStart(), cell: (at) => el("bdi", null, oneLine(columns.prompt[at].slice(0, 240))) },
    ];
    return every.filter(Boolean);
  }

  build() {
    const widths = this.columns.map((column) => column.width).join(" ");
    const total = this.data.items;
    this.heads = this.columns.map((column) =>
      el("div", { role: "columnheader", "data-key": column.key }, el("button", { type: "button", onclick: () => this.sortBy(column.key) }, column.head, el("i", { "aria-hidden": "true" }))),
    );
    const head = el("div", { role: "row", class: "head", "aria-rowindex": "1" }, this.heads);
    this.body = el("div", { role: "rowgroup", class: "body" });
    this.grid = el(
      "div",
      {
        role: "grid", class: "grid", id: "grid", tabindex: "0", "aria-label": "Items", "aria-colcount": this.columns.length,
        "aria-describedby": "grid-help", onkeydown: (event) => this.key(event),
        onscroll: () => this.later(),
      },
      el("div", { role: "rowgroup", class: "heads" }, head), this.body,
    );
    this.grid.style.setProperty("--columns", widths);
    const least = this.columns.reduce((sum, column) => sum + Number(column.width.match(/\d+/)[0]), 0);
    this.grid.style.setProperty("--least", `${least}px`);
    this.status = el("p", { role: "status", class: "status", "aria-live": "polite" });
    document.getElementById("items").append(
      this.controls(), this.status, this.grid,
      el("p", { id: "grid-help", class: "muted help" },
        "Arrow keys move, Enter opens an item, Escape closes it. ",
        this.data.positions ? `The table holds ${count(this.data.items)} of the ${count(this.data.of_items)} items, drawn blindly, as many of each tag as there are; the charts count all. ` : "",
        Object.keys(this.data.cut_prompts).length ? `Prompts are cut in this page where they are long (${plural(Object.keys(this.data.cut_prompts).length, "prompt")} of ${count(total)}); the search sees what is shown. ` : "",
        this.data.prompt_start || this.data.prompt_end ? "What all prompts begin and end with is shown with an item, not here." : ""),
    );
    new ResizeObserver(() => this.draw()).observe(this.grid);
  }

  controls() {
    const { data, filters } = this;
    const changed = () => this.refresh();
    let waiting = 0;
    this.search = el("input", {
      type: "search", id: "search", placeholder: "Search prompt, answer or item id", "aria-label": "Search prompt, answer or item id",
      oninput: () => {
        clearTimeout(waiting);
        waiting = setTimeout(() => ((filters.words = this.search.value.toLowerCase()), changed()), 80);
      },
    });
    const counts = data.tags.map(() => 0);
    for (const tag of data.columns.tag) counts[tag]++;
    const chips = data.tags.map((tag, number) =>
      el(
        "button",
        {
          type: "button", class: "chip", "aria-pressed": "false", "data-tag": tag,
          onclick: (event) => {
            const on = filters.tags.has(number);
            filters.tags[on ? "delete" : "add"](number);
            event.currentTarget.setAttribute("aria-pressed", String(!on));
            changed();
          },
        },
        swatch(tag), tag, el("small", null, count(counts[number])),
      ),
    );
    const choice = (label, options, set) =>
      el(
        "label", null, el("span", null, oneLine(label)),
        el(
          "select", { onchange: (event) => (set(event.target.value), changed()) },
          el("option", { value: "" }, "all"),
          options.map((option, number) => el("option", { value: number }, oneLine(option))),
        ),
      );
    const limit = (label, key) =>
      el(
        "label", null, el("span", null, label),
        el("input", {
          type: "number", min: "0", max: "1", step: "0.05", "data-limit": key,
          oninput: (event) => ((filters[key] = event.target.value === "" ? null : Number(event.target.value)), changed()),
        }),
      );
    return el(
      "div", { class: "controls", role: "search" },
      this.search,
      el("div", { class: "chips", role: "group", "aria-label": "Filter by predicted tag" }, chips),
      el(
        "div", { class: "choices" },
        data.columns.confirmed ? choice("confirmed", data.tags, (value) => (filters.confirmed = value)) : null,
        data.sources.map((source, number) => choice(source.name, source.values, (value) => (filters.sources[number] = value))),
        limit("pass rate from", "low"), limit("to", "high"),
        el("button", { type: "button", class: "quiet", id: "clear", onclick: () => this.clear() }, "Clear filters"),
      ),
    );
  }

  clear() {
    Object.assign(this.filters, { words: "", confirmed: "", low: null, high: null });
    this.filters.tags.clear();
    this.filters.sources.fill("");
    const controls = this.search.parentElement;
    for (const field of controls.querySelectorAll("input, select")) field.value = "";
    for (const chip of controls.querySelectorAll(".chip")) chip.setAttribute("aria-pressed", "false");
    this.refresh();
  }

  // --- Which items, in which order ---------------------------------------------------------

  matching() {
    const { columns, sources, items } = this.data;
    const { words, tags, confirmed, low, high } = this.filters;
    if (words && !this.searched)
      this.searched = columns.prompt.map((prompt, at) => `${prompt}\n${columns.answer[at]}\n${columns.id[at]}`.toLowerCase());
    const chosen = sources.map((source, number) => [source.codes, this.filters.sources[number]]).filter(([, value]) => value !== "");
    const found = [];
    for (let at = 0; at < items; at++) {
      if (tags.size && !tags.has(columns.tag[at])) continue;
      if (confirmed !== "" && columns.confirmed[at] !== Number(confirmed)) continue;
      if (chosen.some(([codes, value]) => codes[at] !== Number(value))) continue;
      const passRate = columns.pass_rate[at];
      if (low !== null && !(passRate !== null && passRate >= low)) continue;
      if (high !== null && !(passRate !== null && passRate <= high)) continue;
      if (words && !this.searched[at].includes(words)) continue;
      found.push(at);
    }
    return Int32Array.from(found);
  }

  refresh() {
    const kept = this.order[this.active];
    this.order = this.sorted(this.matching());
    this.active = Math.max(0, this.order.indexOf(kept));
    this.grid.setAttribute("aria-rowcount", this.order.length + 1);
    this.rows = new Map();
    this.body.replaceChildren(...(this.order.length ? [] : [el("p", { class: "muted none" }, "No item matches.")]));
    this.body.style.height = `${this.order.length * ROW_HEIGHT}px`;
    this.status.textContent = this.order.length === this.data.items
      ? plural(this.data.items, "item")
      : `${count(this.order.length)} of ${plural(this.data.items, "item")}`;
    for (const head of this.heads) {
      const sorted = head.dataset.key === this.sort.key;
      if (sorted) head.setAttribute("aria-sort", this.sort.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    this.grid.scrollTop = 0;
    if (kept !== undefined && this.active) this.reveal();
    this.draw();
  }

  // Unknown values stand last, whichever way; equal ones in the order of the dataset.
  sorted(positions) {
    const { value } = this.columns.find((column) => column.key === this.sort.key);
    const sign = this.sort.down ? -1 : 1;
    const keys = Array.from({ length: this.data.items }, (_, at) => value(at));
    const unknown = (key) => key === null || key === undefined || Number.isNaN(key);
    return positions.sort((a, b) => {
      const [one, other] = [keys[a], keys[b]];
      if (unknown(one) || unknown(other)) return unknown(one) - unknown(other) || a - b;
      return one < other ? -sign : one > other ? sign : a - b;
    });
  }

  sortBy(key) {
    this.sort = { key, down: this.sort.key === key ? !this.sort.down : false };
    this.active = 0;
    this.order = new Int32Array(0);
    this.refresh();
  }

  // --- The rows in sight -------------------------------------------------------------------

  later() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => ((this.waiting = 0), this.draw()));
  }

  draw() {
    const first = Math.max(0, Math.floor(this.grid.scrollTop / ROW_HEIGHT) - SPARE_ROWS);
    const last = Math.min(this.order.length, first + Math.ceil(this.grid.clientHeight / ROW_HEIGHT) + 2 * SPARE_ROWS);
    for (const [place, row] of this.rows)
      if (place < first || place >= last) {
        row.remove();
        this.rows.delete(place);
      }
    // Rows that stay in sight stay the same elements: a click may be on its way to one.
    for (let place = first; place < last; place++) {
      if (!this.rows.has(place)) {
        this.rows.set(place, this.row(place));
        this.body.append(this.rows.get(place));
      }
      this.rows.get(place).classList.toggle("active", place === this.active);
    }
    if (this.rows.has(this.active)) this.grid.setAttribute("aria-activedescendant", `row-${this.active}`);
    else this.grid.removeAttribute("aria-activedescendant");
  }

  row(place) {
    const at = this.order[place];
    const row = el(
      "div",
      {
        role: "row", class: "row", id: `row-${place}`, "aria-rowindex": place + 2, "data-item": at,
        onclick: () => ((this.active = place), this.open(at)),
      },
      this.columns.map((column) => el("div", { role: "gridcell", class: `cell-${column.key}` }, column.cell(at))),
    );
    row.style.top = `${place * ROW_HEIGHT}px`;
    return row;
  }

  key(event) {
    if (event.target !== this.grid || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.grid.clientHeight / ROW_HEIGHT) - 2);
    const last = this.order.length - 1;
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in moves) {
      this.active = Math.max(0, Math.min(last, this.active + moves[event.key]));
      this.reveal();
      this.draw();
    } else if (event.key === "Enter" && last >= 0) this.open(this.order[this.active]);
    else return;
    event.preventDefault();
  }

  reveal() {
    const head = this.grid.firstElementChild.offsetHeight;
    const [top, height] = [this.active * ROW_HEIGHT, this.grid.clientHeight - head];
    if (top < this.grid.scrollTop) this.grid.scrollTop = top;
    else if (top + ROW_HEIGHT > this.grid.scrollTop + height) this.grid.scrollTop = top + ROW_HEIGHT - height;
  }

  // The item before or after one, in the order shown; null at the ends or where it is filtered out.
  beside(at, step) {
    const place = this.order.indexOf(at);
    return place < 0 ? null : (this.order[place + step] ?? null);
  }

  // Comes back to the table, at the item that was looked at last.
  back(at) {
    const place = this.order.indexOf(at);
    if (place >= 0) this.active = place;
    this.reveal();
    this.grid.focus({ preventScroll: true });
    this.draw();
  }
}

// A small picture of a value and its interval, with a mark at τ or 0.
function interval(value, low, high, from, to, rule, level) {
  const track = el("span", { class: "track", "aria-hidden": "true" });
  if (value === null) return track;
  const x = (number) => 100 * Math.max(0, Math.min(1, (number - from) / (to - from)));
  track.append(placed("i", x(rule), 0));
  if (low !== null) track.append(placed("b", x(low), x(high) - x(low)));
  track.append(placed("u", x(value), 0));
  return withTip(track, `${rate(value)} (${level} interval ${between(low, high)})`);
}

function placed(name, left, width) {
  const part = el(name, null);
  part.style.left = `${left}%`;
  if (width) part.style.width = `${width}%`;
  return part;
}
