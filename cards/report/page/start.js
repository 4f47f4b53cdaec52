/* The page begins here: it reads its data, shows the three parts, and switches the theme. */

function read(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

function showMeasured({ run }) {
  const settings = Object.entries(run.settings).map(([name, value]) => `${name} ${typeof value === "string" ? JSON.stringify(value) : value}`);
  const seconds = Object.values(run.seconds).reduce((sum, each) => sum + (each ?? 0), 0);
  const rows = [
    ["model", [run.model, run.model_revision && `revision ${run.model_revision}`, run.dtype, run.weight_hash && `weights ${run.weight_hash.slice(0, 16)}`].filter(Boolean).join(", ")],
    ["dataset", [run.dataset, run.dataset_fingerprint && `fingerprint ${run.dataset_fingerprint.slice(0, 16)}`].filter(Boolean).join(", ")],
    ["τ", String(run.tau)],
    ["forecast", run.forecast],
    ["p_unlearnable", run.predictor ? `by ${run.predictor}` : run.p_unlearnable],
    ["time", `${count(Math.round(seconds))} s on ${run.device ?? "an unknown device"}`],
    ["settings", settings.join(", ")],
    ["versions", Object.entries(run.versions).map(([name, version]) => `${name} ${version}`).join(", ")],
  ];
  document.getElementById("measured").append(
    el("h2", null, "How it was measured"),
    el("dl", { class: "measures" }, rows.map(([name, words]) => [el("dt", null, name), el("dd", null, oneLine(words))])),
    el("p", { class: "muted" }, "Every number of every chart: curate report RUN --json. Tags are those of ‘The Unlearnability Phenomenon in RLVR for Language Models’ (arXiv 2605.16787); predictions are not outcomes."),
  );
}

function switchTheme() {
  const button = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.style.colorScheme || (prefersDark.matches ? "dark" : "light")) === "dark";
  const shown = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
    for (const draw of onTheme) draw();
  };
  button.addEventListener("click", () => {
    document.documentElement.style.colorScheme = isDark() ? "light" : "dark";
    shown();
  });
  prefersDark.addEventListener("change", shown);
  shown();
}

const facts = read("facts-data");
const data = read("items-data");
const view = new ItemView(data, facts);
// The charts name items by their position in the run, of which the table may hold a part.
const places = data.positions && new Map(data.positions.map((position, at) => [position, at]));
const open = (position) => view.open(places ? places.get(position) : position);
showDataset(facts, data.tags);
showCertainty(facts, data.tags, open);
view.table = new ItemTable(data, facts, (at) => view.open(at));
showMeasured(facts);
switchTheme();
document.documentElement.dataset.ready = "true";
