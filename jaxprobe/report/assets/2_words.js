// Numbers and names as people read them.

const minus = (text) => text.replace(/-/g, "−");
const layerTitle = (layer) => data.sites[layer].words;
const spaced = (name) => name.replace(/_/g, " ");

// Made once: toLocaleString with options is slow enough to be felt on thousands of rows.
const formats = [0, 1, 2, 3, 4].map(
  (digits) => new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }),
);

/** A number with this many decimals; four digits are enough from 10 on, and 10 million is a power of ten. */
function number(value, digits) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e7 || digits > 8) return minus(value.toExponential(2));
  const enough = size >= 10 ? Math.max(0, 3 - Math.floor(Math.log10(size))) : 4;
  return minus(formats[Math.min(digits, enough, 4)].format(value));
}

/** Decimals that tell a target's values apart: two for the world's degrees, four for a city's, one for a century. */
function targetDigits(of, target) {
  if (of.is_place) return of.extent.east - of.extent.west > 20 ? 2 : 4;
  return once(of, "digits" + target, () => {
    let [low, high] = [Infinity, -Infinity];
    for (const value of truth(of, target)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    return high > low ? Math.max(0, 3 - Math.floor(Math.log10(high - low))) : 1;
  });
}

/** A value of a target as people write it; a year is 1985.2, not 1,985.2. */
function targetText(of, value, target) {
  if (!Number.isFinite(value)) return "–";
  const digits = targetDigits(of, target);
  return minus(digits > 8 || Math.abs(value) >= 1e15 ? value.toExponential(3) : value.toFixed(digits));
}

const unitOf = (of) => (of.is_place ? "km" : of.units[state.target] ? of.units[state.target] + "s" : "");
const errorDigits = (of) => (of.is_place ? 0 : targetDigits(of, state.target));
const errorText = (of, value) => (number(value, errorDigits(of)) + " " + unitOf(of)).trim();

/** A test score with its interval: "0.412 [0.394, 0.432]". */
function scoreText(of, key, layer, digits) {
  const score = of.scores[key]?.[of.layers.indexOf(layer)];
  if (!score || score[0] === null) return "–";
  const [value, low, high] = score;
  const interval = low === null || high === null ? "" : ` [${number(low, digits)}, ${number(high, digits)}]`;
  return number(value, digits) + interval;
}

/** Plotly reads a few tags in its texts; a name has none. The isolates keep right-to-left names in their place. */
function escapeForPlotly(text, isolate = true) {
  const safe = text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  return isolate ? "\u2068" + safe + "\u2069" : safe;
}

/** The first `most` characters. By code points, so that no emoji is halved. */
function shortened(text, most) {
  const points = Array.from(text);
  return points.length > most ? points.slice(0, most - 1).join("") + "…" : text;
}

/** A long name on at most four lines of a hover label. */
function hoverName(text) {
  const points = Array.from(text.replace(/\s+/g, " "));
  const lines = [];
  while (points.length && lines.length < 4) {
    const isLast = points.length <= 46;
    const cut = isLast ? points.length : points.slice(0, 46).lastIndexOf(" ") + 1 || 46;
    lines.push(points.splice(0, cut).join(""));
  }
  if (points.length) lines[lines.length - 1] += " …";
  return lines.map((line) => escapeForPlotly(line)).join("<br>");
}

const groupLabel = (of, group, row) => table(of).groups[group].labels[codes(of, group)[row]];

const trueText = (of, row) => of.targets.map((_, target) => targetText(of, truth(of, target)[row], target)).join(", ");

/** What a hover label says of a row at every layer: name, groups, truth. The template adds the prediction. */
function hoverText(of, row) {
  const groups = Object.keys(table(of).groups).slice(0, 3);
  const lines = groups.map((group) => {
    const label = escapeForPlotly(shortened(groupLabel(of, group, row), 40));
    return `${escapeForPlotly(spaced(group), false)} ${label}<br>`;
  });
  return `<b>${hoverName(table(of).text[row])}</b><br>${lines.join("")}true ${trueText(of, row)}`;
}

const hoverTexts = (of) => once(of, "hover", () => Array.from(shownRows(of), (row) => hoverText(of, row)));
