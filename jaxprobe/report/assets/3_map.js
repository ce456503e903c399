// The map of places, or the timeline, at the layer of the slider; and the look of all plots.

function theme() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue("--" + name).trim();
  return {
    paper: read("paper"),
    ink: read("ink"),
    quiet: read("quiet"),
    line: read("line"),
    grid: read("grid"),
    land: read("land"),
    coast: read("coast"),
    accent: read("accent"),
  };
}

function baseLayout(look) {
  return {
    paper_bgcolor: look.paper,
    plot_bgcolor: look.paper,
    showlegend: false,
    hovermode: "closest",
    uirevision: "keep",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: look.ink },
    hoverlabel: {
      bgcolor: look.paper,
      bordercolor: look.quiet,
      font: { color: look.ink },
      align: "left",
      namelength: 0,
    },
    // A finger on a plot scrolls the page; a mouse zooms.
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    margin: { l: 8, r: 8, t: 8, b: 8 },
  };
}

const axis = (look, more) => ({
  gridcolor: look.grid,
  linecolor: look.line,
  zeroline: false,
  tickfont: { color: look.quiet },
  ...more,
});

const hasWebGL = (() => {
  try {
    return Boolean(document.createElement("canvas").getContext("webgl"));
  } catch {
    return false;
  }
})();

const pointType = (of) => (shownRows(of).length > MOST_SVG_POINTS && hasWebGL ? "scattergl" : "scatter");

/** For a group: its [label, colour] pairs that occur among the shown points, and from a row to its label and colour. */
function colouring(of) {
  const group = table(of).groups[state.colour];
  if (!group) return null;
  const code = codes(of, state.colour);
  const labelOf = (row) => {
    const label = group.labels[code[row]];
    return Object.hasOwn(group.colours, label) ? label : "other";
  };
  const found = new Set(Array.from(shownRows(of), labelOf));
  const pairs = Object.entries(group.colours).filter(([label]) => found.has(label));
  return { pairs, labelOf, of: (row) => group.colours[labelOf(row)] };
}

/** The shown points in a fixed shuffled order, so that no group hides another because it comes later in the table. */
function shuffled(of) {
  return once(of, "order", () => {
    const order = Array.from(shownRows(of).keys());
    let seed = 1;
    for (let i = order.length - 1; i > 0; i--) {
      seed = (seed * 16807) % 2147483647;
      const j = seed % (i + 1);
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  });
}

/** x and y of the shown points: longitude and latitude, or true against predicted. */
function coordinates(of, layer) {
  if (of.is_place) return { x: predictions(of, 1, layer), y: predictions(of, 0, layer) };
  const true_ = truth(of, state.target);
  return { x: Float64Array.from(shownRows(of), (row) => true_[row]), y: predictions(of, state.target, layer) };
}

function pointTrace(of, layer) {
  const rows = shownRows(of);
  const { x, y } = coordinates(of, layer);
  const error = errors(of, layer);
  const colours = colouring(of);
  const at = colours ? shuffled(of).filter((i) => !state.hidden.has(colours.labelOf(rows[i]))) : shuffled(of);
  const narrow = byId("main-plot").clientWidth < 600;
  const size = rows.length > 3000 ? 4 : rows.length > 200 ? 5.5 : 9;
  const columns = of.targets.map((_, target) => predictions(of, target, layer));
  const predicted = (i) => columns.map((column, target) => targetText(of, column[i], target)).join(", ");
  const pick = (values) => at.map((i) => values[i]);
  return {
    type: pointType(of),
    mode: "markers",
    meta: "points",
    x: pick(x),
    y: pick(y),
    customdata: at.map((i) => [rows[i], error[i], predicted(i), errorText(of, error[i])]),
    text: pick(hoverTexts(of)),
    hovertemplate: "%{text}<br>predicted %{customdata[2]}<br>error %{customdata[3]}<extra></extra>",
    marker: { opacity: 0.8, size: size * (narrow ? 0.65 : 1), ...pointColours(of, at, error) },
  };
}

/** Colours of the points at the given places among those shown: by group, by true longitude, or by error. */
function pointColours(of, at, error) {
  const rows = shownRows(of);
  const colours = colouring(of);
  if (colours) return { color: at.map((i) => colours.of(rows[i])) };
  if (state.colour === BY_LONGITUDE) return longitudeColours(at.map((i) => truth(of, 1)[rows[i]]));
  return errorColours(
    of,
    at.map((i) => error[i]),
  );
}

const COLOUR_BAR = { thickness: 10, len: 0.9, x: 1, xpad: 4, outlinewidth: 0 };

// Blue to vermilion: both stand out on a white and on a dark page, and to every kind of colour blindness.
const ERROR_COLOURS = [
  [0, "#0072B2"],
  [0.5, "#B9B4A7"],
  [1, "#D55E00"],
];

function errorColours(of, values) {
  const sorted = headlineErrors(of).sort();
  const top = sorted[Math.floor(0.95 * (sorted.length - 1))] || 1;
  const title = { text: "error" + (unitOf(of) && ", " + unitOf(of)), side: "right" };
  return { color: values, cmin: 0, cmax: top, colorscale: ERROR_COLOURS, colorbar: { title, ...COLOUR_BAR } };
}

// Dark in the west, light in the east: a map that the model knows shows the colours in their order.
const LONGITUDE_COLOURS = [
  [0, "#0072B2"],
  [0.5, "#009E73"],
  [1, "#E69F00"],
];

function longitudeColours(values) {
  const colorbar = { title: { text: "true longitude", side: "right" }, ...COLOUR_BAR };
  return { color: values, colorscale: LONGITUDE_COLOURS, colorbar };
}

function headlineErrors(of) {
  const test = isTest(of);
  const found = [];
  for (let row = 0; row < test.length; row++) {
    const error = test[row] ? headlineError(of, row) : NaN;
    if (Number.isFinite(error)) found.push(error);
  }
  return Float64Array.from(found);
}

function landTrace(look) {
  const flat = once(data, "coast", () => decode(data.coast, Int16Array));
  const x = [];
  const y = [];
  for (let i = 0; i < flat.length; i += 2) {
    const gap = flat[i] === -32768;
    x.push(gap ? null : flat[i] / 100);
    y.push(gap ? null : flat[i + 1] / 100);
  }
  return {
    type: "scatter",
    mode: "lines",
    x,
    y,
    fill: "toself",
    fillcolor: look.land,
    line: { color: look.coast, width: 0.7 },
    hoverinfo: "skip",
  };
}

function trueTrace(of, look) {
  const rows = shownRows(of);
  return {
    type: pointType(of),
    mode: "markers",
    hoverinfo: "skip",
    x: Array.from(rows, (row) => truth(of, 1)[row]),
    y: Array.from(rows, (row) => truth(of, 0)[row]),
    marker: { size: 3, color: look.quiet, opacity: 0.35 },
  };
}

/** The chosen entity: a line from its true to its predicted place, or a ring on the timeline. */
function selectedTrace(of, look) {
  const at = shownRows(of).indexOf(state.selected);
  if (at < 0) return [];
  const { x, y } = coordinates(of, state.layer);
  const marker = { size: 12, color: "rgba(0,0,0,0)", line: { color: look.ink, width: 2 } };
  // WebGL draws above SVG: the mark must be of the points' kind, or it lies beneath them.
  const point = { type: pointType(of), hoverinfo: "skip", line: { color: look.ink, width: 1.5 } };
  if (!of.is_place) return [{ ...point, mode: "markers", x: [x[at]], y: [y[at]], marker }];
  return [
    {
      ...point,
      mode: "lines+markers",
      x: [truth(of, 1)[state.selected], x[at]],
      y: [truth(of, 0)[state.selected], y[at]],
      marker: { symbol: ["x", "circle-open"], size: [9, 13], color: look.ink, line: { width: 2, color: look.ink } },
    },
  ];
}

function mapLayout(of, look, width) {
  const { west, east, south, north, aspect } = of.extent;
  const frame = {
    showgrid: false,
    zeroline: false,
    showticklabels: false,
    mirror: true,
    linecolor: look.line,
    showline: true,
  };
  const height = ((width - 16) * (north - south) * aspect) / (east - west) + 16;
  return {
    xaxis: { ...frame, range: [west, east], constrain: "domain" },
    yaxis: { ...frame, range: [south, north], scaleanchor: "x", scaleratio: aspect, constrain: "domain" },
    height: Math.min(720, Math.max(200, height)),
  };
}

function timeLayout(of, look, width) {
  const [low, high] = timeRange(of);
  const name = escapeForPlotly(shortened(spaced(of.targets[state.target]), 40), false);
  const tickformat = Math.max(Math.abs(low), Math.abs(high)) >= 1e7 || high - low < 1e-4 ? "~e" : "~f";
  const title = (word) => ({ text: `${word} ${name}`, font: { color: look.quiet } });
  const dashed = { color: look.quiet, width: 1, dash: "dash" };
  // Plain digits: a year is 1985, not 1,985.
  return {
    xaxis: axis(look, { range: [low, high], title: title("true"), tickformat, constrain: "domain" }),
    yaxis: axis(look, { range: [low, high], title: title("predicted"), tickformat, automargin: true, scaleanchor: "x" }),
    margin: { l: 58, r: 8, t: 8, b: 46 },
    height: Math.min(640, Math.max(320, width * 0.8)),
    shapes: [{ type: "line", x0: low, y0: low, x1: high, y1: high, line: dashed, layer: "below" }],
  };
}

function drawMain() {
  const of = run();
  const look = theme();
  const width = byId("main-plot").clientWidth;
  const layout = { ...baseLayout(look), ...(of.is_place ? mapLayout : timeLayout)(of, look, width) };
  // Room for the scale of colours.
  if (!colouring(of)) layout.margin = { ...layout.margin, r: 76 };
  // A zoom stays while the slider moves, and ends with the run.
  layout.uirevision = `${state.run} ${state.target}`;
  const traces = [];
  if (of.is_place && of.extent.shows_coast) traces.push(landTrace(look));
  if (of.is_place && byId("show-true").checked) traces.push(trueTrace(of, look));
  traces.push(pointTrace(of, state.layer), ...selectedTrace(of, look));
  return Plotly.react("main-plot", traces, layout, PLOT_CONFIG);
}

/** Frame of the timeline: nearly all true values and headline predictions; a few far ones do not press it together. */
function timeRange(of) {
  const test = isTest(of);
  const values = [];
  test.forEach((flag, row) => {
    if (flag) values.push(truth(of, state.target)[row], headlineColumn(of, state.target)[row]);
  });
  const sorted = Float64Array.from(values.filter(Number.isFinite)).sort();
  const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
  const margin = 0.08 * (at(0.998) - at(0.002)) || 0.08 * Math.abs(at(0.002)) || 1;
  return [at(0.002) - margin, at(0.998) + margin];
}

/** How many of the points drawn at this layer lie outside of the frame that the picture opens with. */
function outsideWords(of) {
  const { x, y } = coordinates(of, state.layer);
  const { west, east, south, north } = of.extent ?? {};
  const [low, high] = of.is_place ? [0, 0] : timeRange(of);
  const [left, right, bottom, top] = of.is_place ? [west, east, south, north] : [low, high, low, high];
  const inside = (i) => x[i] >= left && x[i] <= right && y[i] >= bottom && y[i] <= top;
  const missing = x.filter((value, i) => Number.isFinite(value + y[i]) && !inside(i)).length;
  return missing ? `${number(missing, 0)} ${missing === 1 ? "point lies" : "points lie"} outside of the frame.` : "";
}

function sayLayer() {
  const of = run();
  const chosen = state.layer === of.headline ? " (chosen on the training rows)" : "";
  const error = of.is_place
    ? `median error ${scoreText(of, "place error_km_median", state.layer, 0)}`
    : `mean absolute error ${scoreText(of, of.targets[state.target] + " mae", state.layer, errorDigits(of))}`;
  const r2 = `test R² ${scoreText(of, "mean r2", state.layer, 3)}`;
  byId("layer-words").textContent = `${layerTitle(state.layer)}${chosen} · ${r2} · ${error} ${unitOf(of)}`.trim();
  byId("outside").textContent = outsideWords(of);
  byId("layer").setAttribute("aria-valuetext", layerTitle(state.layer));
}

function saySelected() {
  byId("selected-words").textContent = state.selected < 0 ? "" : selectedWords(run(), state.selected);
}

function selectedWords(of, row) {
  const name = `\u2068${table(of).text[row]}\u2069`;
  if (!isTest(of)[row]) return `${name}: a training row, so nothing is predicted for it`;
  const at = shownRows(of).indexOf(row);
  if (at < 0) return `${name}: not in the sample drawn`;
  const values = of.targets.map((_, target) => predictions(of, target, state.layer)[at]);
  const predicted = values.map((value, target) => targetText(of, value, target)).join(", ");
  const error = errorText(of, errors(of, state.layer)[at]);
  return `${name}: true ${trueText(of, row)}; predicted ${predicted} at ${layerTitle(state.layer)}; error ${error}`;
}

function dotOf(colour) {
  const dot = document.createElement("span");
  dot.className = "dot";
  dot.style.background = colour;
  return dot;
}

function drawLegend() {
  byId("legend").replaceChildren(
    ...(colouring(run())?.pairs ?? []).map(([label, colour]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.append(dotOf(colour), label || "(empty)");
      button.addEventListener("click", () => {
        if (!state.hidden.delete(label)) state.hidden.add(label);
        button.setAttribute("aria-pressed", String(!state.hidden.has(label)));
        drawMain();
      });
      return button;
    }),
  );
}
