"use strict";
// State of the page and its numbers, out of the JSON in #data. The files of this folder are joined, in order, to one
// script. Names from data only ever become text nodes, or pass escapeForPlotly.

const data = JSON.parse(document.getElementById("data").textContent);
const state = {
  run: 0,
  layer: "",
  colour: "",
  target: 0,
  group: "",
  selected: -1,
  hidden: new Set(),
  sort: "row",
  shown: 25,
};
const byId = (id) => document.getElementById(id);
const MISSING = 65535;
// What colours can show besides a group; a group is called by its column, which may be "error".
const BY_ERROR = ":error";
const BY_LONGITUDE = ":longitude";
// Above this many points, SVG redraws too slowly to follow the slider; WebGL draws them, where the browser has it.
const MOST_SVG_POINTS = 4000;
const PLOT_CONFIG = {
  displaylogo: false,
  responsive: true,
  scrollZoom: false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
};
const RUN_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];

function decode(text, Type) {
  const bytes = atob(text);
  const out = new Uint8Array(bytes.length);
  for (let i = 0; i < bytes.length; i++) out[i] = bytes.charCodeAt(i);
  return new Type(out.buffer);
}

function once(object, key, make) {
  object.cache ??= {};
  return (object.cache[key] ??= make());
}

const run = () => data.runs[state.run];
const table = (of = run()) => data.tables[of.table];
const truth = (of, target) => once(table(of), "truth" + target, () => decode(table(of).truth[target], Float64Array));
const isTest = (of) => once(table(of), "test", () => decode(table(of).is_test, Uint8Array));
const codes = (of, group) =>
  once(table(of).groups[group], "codes", () =>
    decode(table(of).groups[group].codes, table(of).groups[group].wide ? Uint32Array : Uint16Array),
  );
const headlineColumn = (of, column) =>
  once(of, "headline" + column, () => decode(of.headline_predictions[column], Float64Array));
const shownRows = (of) => once(of, "rows", () => decode(of.map.rows, Uint32Array));

/** Column `column` of the predictions at a layer, one for each shown row; NaN where there is none. */
function predictions(of, column, layer) {
  const block = of.map.values[column];
  const rows = shownRows(of).length;
  const all = once(block, "codes", () => decode(block.codes, Uint16Array));
  const start = of.map.layers.indexOf(layer) * rows;
  return Float64Array.from(all.subarray(start, start + rows), (code) =>
    code === MISSING ? NaN : block.low + block.step * code,
  );
}

/** Error of each shown row at a layer: km for places, distance from the truth in the target's unit else. */
function errors(of, layer) {
  if (of.is_place) return predictions(of, of.targets.length, layer);
  const true_ = truth(of, state.target);
  const rows = shownRows(of);
  return predictions(of, state.target, layer).map((value, i) => Math.abs(value - true_[rows[i]]));
}

/** Error of an entity at the headline layer; NaN for training rows. */
function headlineError(of, row) {
  if (of.is_place) return headlineColumn(of, of.targets.length)[row];
  return Math.abs(headlineColumn(of, state.target)[row] - truth(of, state.target)[row]);
}
