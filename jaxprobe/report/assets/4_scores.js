// R² by layer, for all runs; and the error by group at the chosen layer.

const position = (layer) => data.sites[layer].x;
const everyLayer = Object.keys(data.sites);
// Sites inside of blocks have lines of their own, in a single run: kind -> colour.
const INSIDE = { mid: "#009E73", mlp: "#CC79A7" };
const INSIDE_WORDS = { mid: "between attention and MLP", mlp: "the MLP's neurons" };
const BASELINE = "#D55E00";

/** A run's R² (mean or of one target) at the given layers: [value, ci_low, ci_high] each. */
const scoresAt = (of, target, layers) => layers.map((layer) => of.scores[target + " r2"][of.layers.indexOf(layer)]);

/** What is far off the axis, just off it: a picture can't hold a coordinate of -1e53. */
const clipped = (value) => (value === null ? null : Math.max(-2, Math.min(2, value)));

/** A trace of scores at some layers; hover gives value and interval, and a click the layer. */
function scoreTrace(of, target, layers, look) {
  const name = data.runs.length > 1 ? escapeForPlotly(of.name, false) + "<br>" : "";
  const which = target === "mean" ? "" : escapeForPlotly(spaced(target), false) + ", ";
  return {
    type: "scatter",
    x: layers.map(position),
    y: scoresAt(of, target, layers).map((score) => clipped(score[0])),
    customdata: layers.map((layer) => [data.runs.indexOf(of), layer]),
    text: layers.map((layer) => `${name}${which}${layerTitle(layer)}<br>R² ${scoreText(of, target + " r2", layer, 3)}`),
    hovertemplate: "%{text}<extra></extra>",
    ...look,
  };
}

function bandTrace(of, layers, colour) {
  const known = layers.filter((layer) => scoresAt(of, "mean", [layer])[0][1] !== null);
  const scores = scoresAt(of, "mean", known);
  const there = known.map(position);
  return {
    type: "scatter",
    mode: "lines",
    x: [...there, ...there.slice().reverse()],
    y: [...scores.map((score) => clipped(score[1])), ...scores.map((score) => clipped(score[2])).reverse()],
    fill: "toself",
    fillcolor: colour + "2E",
    line: { width: 0 },
    hoverinfo: "skip",
  };
}

/** The embed state's score, and a line from end to end of its interval, which need not hold the score. */
function embedTraces(of, colour) {
  const ends = scoresAt(of, "mean", ["embed"])[0].slice(1).map(clipped);
  const marker = { symbol: "diamond", size: 10, color: colour };
  const caps = { symbol: "line-ew-open", size: 8, color: colour, line: { width: 1.5 } };
  const line = { color: colour, width: 1.5 };
  const x = ends.map(() => position("embed"));
  const interval = { type: "scatter", mode: "lines+markers", x, y: ends, marker: caps, line, hoverinfo: "skip" };
  return [interval, scoreTrace(of, "mean", ["embed"], { mode: "markers", marker })];
}

/** A mark at the lower edge for every state whose R² lies below the axis; hover says how far. */
function belowTraces(of, colour) {
  const [bottom] = scoreRange();
  const below = of.layers.filter((layer) => (scoresAt(of, "mean", [layer])[0][0] ?? bottom) < bottom);
  if (!below.length) return [];
  const marker = { symbol: "triangle-down", size: 9, color: colour };
  return [{ ...scoreTrace(of, "mean", below, { mode: "markers", marker, cliponaxis: false }), y: below.map(() => bottom) }];
}

/** Which of a run's states lie below the axis, in words. */
function belowWords(of) {
  const [bottom] = scoreRange();
  const values = of.layers.map((layer) => scoresAt(of, "mean", [layer])[0][0] ?? Infinity);
  const below = values.filter((value) => value < bottom).length;
  if (!below) return "";
  const least = Math.min(...values);
  const where = layerTitle(of.layers[values.indexOf(least)]);
  const name = data.runs.length > 1 ? of.name + ": " : "";
  return `${name}${below} of ${of.layers.length} states lie below the axis (triangles), the least ${number(least, 3)} at ${where}.`;
}

function runTraces(of, colour, look) {
  const blocks = of.layers.filter((layer) => ["block", "final_norm"].includes(data.sites[layer].kind));
  const alone = data.runs.length === 1;
  const traces = [bandTrace(of, blocks, colour)];
  if (alone && of.targets.length > 1) {
    const thin = { mode: "lines", line: { color: look.quiet, width: 1 } };
    traces.push(...of.targets.map((target) => scoreTrace(of, target, blocks, thin)));
  }
  const line = { mode: "lines+markers", line: { color: colour, width: 2.5 }, marker: { size: 5, color: colour } };
  traces.push(scoreTrace(of, "mean", blocks, line));
  for (const [kind, own] of Object.entries(INSIDE)) {
    const layers = of.layers.filter((layer) => data.sites[layer].kind === kind);
    const look = { color: alone ? own : colour, width: 1.5, dash: alone ? "solid" : "dot" };
    const marker = { size: 4, color: look.color };
    if (layers.length) traces.push(scoreTrace(of, "mean", layers, { mode: "lines+markers", line: look, marker }));
  }
  if (of.layers.includes("embed")) traces.push(...embedTraces(of, alone ? BASELINE : colour));
  const dot = { mode: "markers", marker: { size: 11, color: colour, line: { color: look.paper, width: 2 } } };
  traces.push(scoreTrace(of, "mean", [of.headline], dot), ...belowTraces(of, alone ? BASELINE : colour));
  return traces;
}

/** Names at the right end of a single run's lines, at least a line's height apart. */
function lineNames(of, look) {
  if (data.runs.length > 1 || of.targets.length < 2) return [];
  const last = of.layers.filter((layer) => ["block", "final_norm"].includes(data.sites[layer].kind)).at(-1);
  if (last === undefined) return [];
  const [bottom, top] = scoreRange();
  const inside = (value) => Math.max(bottom, Math.min(top, value ?? bottom));
  const ends = ["mean", ...of.targets].map((target) => ({ target, y: inside(scoresAt(of, target, [last])[0][0]) }));
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => {
    if (i) end.y = Math.max(end.y, ends[i - 1].y + 0.05 * (top - bottom));
  });
  return ends.map(({ target, y }) => ({
    x: position(last),
    y,
    text: escapeForPlotly(shortened(spaced(target), 14), false),
    xanchor: "left",
    xshift: 6,
    showarrow: false,
    font: { size: 11, color: target === "mean" ? RUN_COLOURS[0] : look.quiet },
  }));
}

function layerAxis(look) {
  const most = byId("score-plot").clientWidth < 500 ? 6 : 14;
  const places = everyLayer.map(position);
  const [left, right] = [Math.min(...places), Math.max(...places)];
  const step = Math.max(1, Math.round((right - left) / most));
  const ends = everyLayer.filter((layer) => ["embed", "final_norm"].includes(layer));
  const crowded = (block) => step > 1 && ends.some((layer) => Math.abs(position(layer) - block) < step / 2);
  // Names of states: those of blocks, and for what is inside of a block its number.
  const names = new Map(everyLayer.map((layer) => [Math.ceil(position(layer)), /^mlp\.|\.mid$/.test(layer) ? layer.replace(/\D/g, "") : layer]));
  ends.forEach((layer) => names.delete(position(layer)));
  const shown = [...names].filter(([place]) => names.size <= most || (place % step === 0 && !crowded(place)));
  const ticks = [...ends.map((layer) => [position(layer), layer === "embed" ? "embed" : "norm"])];
  ticks.push(...shown.map(([place, name]) => [place, shortened(name, 12)]));
  return axis(look, {
    showgrid: false,
    tickvals: ticks.map(([place]) => place),
    ticktext: ticks.map(([, name]) => name),
    range: [left - 0.8, right + 0.8],
    title: { text: "residual stream after block", font: { color: look.quiet } },
  });
}

/** From zero, or below, down to -1 (worse would press the rest together), to a little over the best, at most 1. */
function scoreRange() {
  return once(data, "scoreRange", () => {
    const lists = data.runs.flatMap((of) => {
      const targets = data.runs.length === 1 ? ["mean", ...of.targets] : ["mean"];
      return targets.flatMap((target) => scoresAt(of, target, of.layers).flat());
    });
    const known = lists.filter((value) => value !== null);
    const low = Math.max(-1, Math.min(0, ...known));
    const high = Math.min(1, Math.max(0.1, ...known));
    const margin = 0.05 * (high - low);
    return [low - (low < 0 ? margin : 0), Math.min(high + margin, 1.03)];
  });
}

function drawScores() {
  const look = theme();
  const line = { type: "line", layer: "below" };
  const at = position(state.layer);
  const layout = baseLayout(look);
  layout.xaxis = layerAxis(look);
  layout.yaxis = axis(look, { title: { text: "test R²", font: { color: look.quiet } }, range: scoreRange() });
  layout.annotations = lineNames(data.runs[0], look);
  layout.margin = { l: 56, r: layout.annotations.length ? 76 : 12, t: 12, b: 46 };
  layout.height = 360;
  layout.shapes = [{ ...line, x0: at, x1: at, yref: "paper", y0: 0, y1: 1, line: { color: look.quiet, width: 1 } }];
  const y = data.runs.length === 1 && run().layers.includes("embed") ? scoresAt(run(), "mean", ["embed"])[0][0] : null;
  if (y !== null) {
    const dashed = { color: BASELINE, width: 1, dash: "dash" };
    if (y >= scoreRange()[0]) layout.shapes.push({ ...line, xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: dashed });
  }
  const traces = data.runs.flatMap((of, i) => runTraces(of, RUN_COLOURS[i % RUN_COLOURS.length], look));
  return Plotly.react("score-plot", traces, layout, PLOT_CONFIG);
}

/** What lies below the axis, and which colour is which run's, where there are several. */
function drawScoreKey() {
  byId("score-below").textContent = data.runs.map(belowWords).filter(Boolean).join(" ");
  const kinds = Object.keys(INSIDE).filter((kind) => everyLayer.some((layer) => data.sites[layer].kind === kind));
  const lines =
    data.runs.length > 1
      ? data.runs.map((of, i) => [RUN_COLOURS[i % RUN_COLOURS.length], of.name])
      : kinds.map((kind) => [INSIDE[kind], INSIDE_WORDS[kind]]);
  const entries = lines.map(([colour, words]) => {
    const entry = document.createElement("p");
    const name = document.createElement("span");
    name.textContent = words;
    entry.append(dotOf(colour), name);
    return entry;
  });
  byId("score-key").replaceChildren(...entries);
}

function quantile(sorted, share) {
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

/** Median and quartiles of the chosen layer's error for the 25 most frequent groups, least error first. */
function errorsByGroup(of, group) {
  const code = codes(of, group);
  const found = new Map();
  isTest(of).forEach((flag, row) => {
    const error = flag ? headlineError(of, row) : NaN;
    if (!Number.isFinite(error)) return;
    if (!found.has(code[row])) found.set(code[row], []);
    found.get(code[row]).push(error);
  });
  const bars = Array.from(found, ([key, list]) => {
    const sorted = Float64Array.from(list).sort();
    const [low, median, high] = [0.25, 0.5, 0.75].map((share) => quantile(sorted, share));
    return { label: table(of).groups[group].labels[key], count: list.length, low, median, high };
  });
  const frequent = bars.sort((a, b) => b.count - a.count).slice(0, 25);
  return frequent.sort((a, b) => a.median - b.median);
}

function groupText(of, bar) {
  const half = `${number(bar.low, errorDigits(of))} to ${errorText(of, bar.high)}`;
  const median = errorText(of, bar.median);
  return `${hoverName(bar.label)}<br>${number(bar.count, 0)} test rows<br>median error ${median}<br>middle half ${half}`;
}

function drawGroups() {
  const of = run();
  byId("group-section").hidden = state.group === "";
  if (state.group === "") return Promise.resolve();
  const look = theme();
  const bars = errorsByGroup(of, state.group);
  const layout = baseLayout(look);
  const title = {
    text: `median error${unitOf(of) && ", " + unitOf(of)}; line: the middle half`,
    font: { color: look.quiet },
  };
  // Room for the toolbar above the first bar.
  layout.margin = { l: 8, r: 16, t: 34, b: 46 };
  layout.height = 96 + 22 * bars.length;
  layout.dragmode = false;
  layout.xaxis = axis(look, { title, rangemode: "tozero" });
  layout.yaxis = axis(look, {
    automargin: true,
    tickvals: bars.map((_, i) => i),
    ticktext: bars.map((bar) => escapeForPlotly(shortened(bar.label || "(empty)", 24)) + " "),
    showgrid: false,
    tickfont: { color: look.ink },
  });
  const trace = {
    type: "bar",
    orientation: "h",
    x: bars.map((bar) => bar.median),
    y: bars.map((_, i) => i),
    marker: { color: look.accent, opacity: 0.75 },
    error_x: {
      array: bars.map((bar) => bar.high - bar.median),
      arrayminus: bars.map((bar) => bar.median - bar.low),
      color: look.quiet,
      thickness: 1.2,
      width: 3,
    },
    text: bars.map((bar) => groupText(of, bar)),
    textposition: "none",
    hovertemplate: "%{text}<extra></extra>",
  };
  return Plotly.react("group-plot", [trace], layout, PLOT_CONFIG);
}
