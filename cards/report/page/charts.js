/* Drawing: scales, axes, marks with a tip, and charts that are drawn anew when their width changes. */

const tip = document.getElementById("tip");

// Shows a text beside the pointer while it is over a mark.
function withTip(mark, text) {
  mark.addEventListener("pointermove", (event) => showTip(event, text));
  mark.addEventListener("pointerleave", () => (tip.hidden = true));
  return mark;
}

function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const { offsetWidth: width, offsetHeight: height } = tip;
  const left = Math.min(event.clientX + 14, innerWidth - width - 8);
  const top = event.clientY + 18 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 18;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

const linear = (from, to, start, end) => (value) =>
  start + ((value - from) / (to - from || 1)) * (end - start);

// Round numbers from 0 or below up to the largest value, about `most` of them.
function ticks(from, to, most = 5) {
  const rough = (to - from) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const found = [];
  for (let at = Math.ceil(from / step); at * step <= to + step / 1e6; at++) found.push(at * step);
  return found.map((value) => Number(value.toPrecision(12)));
}

// A chart whose SVG is as wide as its place. `draw(plot, width, height)` adds the marks.
function chart(label, height, draw) {
  const place = el("div", { class: "chart" });
  let drawn = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (!width || width === drawn) return;
    drawn = width;
    const plot = svg("svg", {
      width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label,
    });
    draw(plot, width, height);
    place.replaceChildren(plot);
  }).observe(place);
  return place;
}

const line = (x1, y1, x2, y2, kind) => svg("line", { x1, y1, x2, y2, class: kind });
const text = (x, y, words, kind, anchor = "middle") =>
  svg("text", { x, y, class: kind, "text-anchor": anchor }, words);

// Horizontal grid lines with their numbers.
function yAxis(plot, scale, values, left, right, format = count) {
  for (const value of values) {
    const y = scale(value);
    plot.append(line(left, y, right, y, "grid"), text(left - 6, y + 4, format(value), "tick", "end"));
  }
}

function xAxis(plot, scale, values, bottom, format) {
  for (const value of values) {
    plot.append(line(scale(value), bottom, scale(value), bottom + 4, "axis"));
    plot.append(text(scale(value), bottom + 17, format(value), "tick"));
  }
}

const axisName = (plot, x, y, words, anchor = "middle") => plot.append(text(x, y, words, "name", anchor));

// Vertical bars of stacked tags: `bars` are {label, tags, tip}; `x(n)` gives the left edge and width.
function stackedBars(plot, bars, tags, x, y, bottom) {
  bars.forEach((bar, number) => {
    let below = 0;
    const [left, width] = x(number);
    const group = svg("g", null);
    for (const tag of tags) {
      const value = bar.tags[tag];
      if (!value) continue;
      const top = y(below + value);
      group.append(svg("rect", { x: left, y: top, width, height: Math.max(0.5, y(below) - top), class: `fill ${tag}` }));
      below += value;
    }
    // The whole column answers to the pointer, however low the bar.
    group.append(svg("rect", { x: left - 1, y: y.top, width: width + 2, height: bottom - y.top, class: "hit" }));
    plot.append(withTip(group, bar.tip));
  });
}

const splitText = (split, tags) =>
  tags.filter((tag) => split[tag]).map((tag) => `${count(split[tag])} ${tag}`).join(", ");

// A bar across its place, split by tag in proportion; `whole` is what the full width stands for.
function splitBar(split, tags, whole) {
  const bar = el("div", { class: "split", "aria-hidden": "true" });
  for (const tag of tags) {
    if (!split[tag]) continue;
    const part = el("span", { class: tag });
    part.style.width = `${(100 * split[tag]) / whole}%`;
    bar.append(part);
  }
  return withTip(bar, splitText(split, tags) || "none");
}

// The colour of a cosine: from the ground to a warm hue above 0, to a cold one below.
function diverging(value, most) {
  const strength = Math.min(1, Math.abs(value) / most);
  const hue = value < 0 ? "var(--cold)" : "var(--warm)";
  return `color-mix(in oklab, ${hue} ${Math.round(100 * strength)}%, var(--cell))`;
}

// Resolves a CSS colour to red, green and blue, for a canvas.
function resolved(colour) {
  const probe = el("span", { hidden: "" });
  probe.style.color = colour;
  document.body.append(probe);
  const canvas = el("canvas", { width: 1, height: 1 });
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(probe).color;
  context.fillRect(0, 0, 1, 1);
  probe.remove();
  return context.getImageData(0, 0, 1, 1).data;
}

// What is drawn on a canvas does not follow the theme by itself.
const onTheme = [];
