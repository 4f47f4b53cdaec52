/* Elements and words. Untrusted text is put in as text nodes, with its control characters shown. */

// Characters that change how their neighbours look, or look like nothing: bidi controls, other
// controls but tab and line end, zero-width spaces, tags. Joiners stay: scripts need them.
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;

const visible = (text) =>
  String(text).replaceAll("\r\n", "\n").replace(HIDDEN, (each) => {
    const code = each.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    return `⟨U+${code}⟩`;
  });

// The same on one line, for a cell.
const oneLine = (text) => visible(text).replace(/\s+/g, " ").trim();

// el("p", {class: "note", onclick: f}, "text", child, null): functions are listeners.
function el(name, attributes, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function svg(name, attributes, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

// Adds children, of which some may be null, to an element of the page.
function add(element, ...children) {
  return filled(element, null, children);
}

// Text in which commands stand between backticks.
const coded = (words) =>
  visible(words).split("`").map((part, number) => (number % 2 ? el("code", null, part) : part));

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
  return element;
}

const DASH = "–";
const count = (value) => (value === null || value === undefined ? DASH : value.toLocaleString("en-US"));
const rate = (value, digits = 3) =>
  value === null || value === undefined ? DASH : value.toFixed(digits).replace("-", "−");
const percent = (value) => (value === null ? DASH : `${(100 * value).toFixed(1)} %`);
const between = (low, high, digits = 3) =>
  low === null || high === null || low === undefined || high === undefined
    ? "no interval"
    : `${rate(low, digits)} to ${rate(high, digits)}`;
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

const TAG_MEANINGS = {
  easy: (tau) => `right in at least ${+(100 * tau).toPrecision(6)} % of rollouts already: pass rate at least ${tau}`,
  learnable: (tau) => `hard; expected to reach ${tau} by training`,
  unlearnable: (tau) => `hard; expected to stay below ${tau}, though it is sometimes right`,
  no_positive: () => "hard; not one sampled answer was right",
  undetermined: () => "the evidence does not decide",
};

const swatch = (tag) => el("span", { class: `swatch ${tag}`, "aria-hidden": "true" });
const tagLabel = (tag) => el("span", { class: "tag" }, swatch(tag), tag);

function legend(tags) {
  return el("p", { class: "legend" }, tags.map(tagLabel));
}

// A figure: its title, what is drawn, and a caption that says how to read it.
function figure(title, content, caption, wide = false) {
  return el(
    "figure",
    { class: wide ? "wide" : null },
    el("h3", null, title),
    content,
    caption ? el("figcaption", null, caption) : null,
  );
}

// The numbers of a chart as a table, for those who want them exactly or cannot see the chart.
function numbers(head, rows) {
  return el(
    "details",
    { class: "numbers" },
    el("summary", null, "Numbers"),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers" }, table(head, rows)),
  );
}

function table(head, rows, attributes) {
  return el(
    "table",
    attributes,
    el("thead", null, el("tr", null, head.map((cell) => el("th", { scope: "col" }, cell)))),
    el(
      "tbody",
      null,
      rows.map(([first, ...rest]) =>
        el("tr", null, el("th", { scope: "row" }, first), rest.map((cell) => el("td", null, cell))),
      ),
    ),
  );
}
