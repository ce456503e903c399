// What people do, and what follows from it.

/** Show an entity on the map: its name comes from the table (then the map is scrolled to) or from a point. */
function select(row, scroll) {
  state.selected = row;
  saySelected();
  drawMain();
  if (scroll) byId("main-section").scrollIntoView({ block: "start" });
}

function setLayer(layer) {
  state.layer = layer;
  byId("layer").value = run().map.layers.indexOf(layer);
  sayLayer();
  saySelected();
  drawScores();
  return drawMain();
}

/** Put [value, text] pairs into a choice. */
function fill(selectId, options, chosen) {
  byId(selectId).replaceChildren(
    ...options.map(([value, text]) => {
      const option = document.createElement("option");
      option.value = value;
      option.textContent = text;
      return option;
    }),
  );
  byId(selectId).value = chosen;
}

/** Show another run, at its chosen layer. */
function setRun(index) {
  Object.assign(state, { run: index, target: 0, selected: -1, hidden: new Set(), shown: 25 });
  const of = run();
  const groups = Object.keys(table(of).groups).map((group) => [group, spaced(group)]);
  const targets = of.targets.map(spaced);
  state.colour = of.colour ?? (of.is_place ? BY_LONGITUDE : BY_ERROR);
  state.group = of.colour ?? groups[0]?.[0] ?? "";
  document.querySelectorAll("[data-run]").forEach((part) => (part.hidden = Number(part.dataset.run) !== index));
  byId("main-title").textContent = of.is_place ? "Where the names fall" : `True and predicted ${targets.join(", ")}`;
  byId("layer").max = of.map.layers.length - 1;
  const others = [[BY_ERROR, "error"], ...(of.is_place ? [[BY_LONGITUDE, "true longitude"]] : [])];
  fill("colour", [...groups, ...others], state.colour);
  fill("group", groups, state.group);
  fill("target", Array.from(targets.entries()), 0);
  byId("target-label").hidden = of.is_place || of.targets.length < 2;
  byId("true-label").hidden = !of.is_place;
  byId("sampled").textContent = sampledWords(of);
  drawLegend();
  drawGroups();
  drawTable();
  setLayer(of.map.layers.includes(of.headline) ? of.headline : of.map.layers[0]);
}

function sampledWords(of) {
  const drawn = number(shownRows(of).length, 0);
  const held = number(table(of).text.length, 0);
  let words = `${drawn} test rows are drawn`;
  if (of.map.sampled_from) words += `, a random sample of ${number(of.map.sampled_from, 0)}; scores are of all`;
  if (table(of).sampled_from)
    words += `. The table holds ${held} of ${number(table(of).sampled_from, 0)} entities, test rows first`;
  return words + ".";
}

let playing = 0; // the timer of the next step

function stop() {
  clearTimeout(playing);
  playing = 0;
  byId("play").textContent = "Play";
}

/** Walk from the first state to the last; each step waits for the drawing before it. */
function play() {
  if (playing) return stop();
  byId("play").textContent = "Stop";
  const layers = run().map.layers;
  const shown = Number(byId("layer").value);
  let at = shown >= layers.length - 1 ? 0 : shown;
  const step = async () => {
    await setLayer(layers[at++]);
    if (at < layers.length && playing) playing = setTimeout(step, 250);
    else stop();
  };
  playing = setTimeout(step, 0);
}

function drawAll() {
  drawMain();
  drawScores();
  drawGroups();
}

function listen() {
  byId("layer").addEventListener("input", (event) => {
    stop();
    setLayer(run().map.layers[event.target.value]);
  });
  byId("play").addEventListener("click", play);
  byId("colour").addEventListener("change", (event) => {
    state.colour = event.target.value;
    state.hidden.clear();
    drawLegend();
    drawMain();
  });
  byId("target").addEventListener("change", (event) => {
    state.target = Number(event.target.value);
    sayLayer();
    saySelected();
    drawMain();
    drawGroups();
    drawTable();
  });
  byId("show-true").addEventListener("change", drawMain);
  byId("group").addEventListener("change", (event) => {
    state.group = event.target.value;
    drawGroups();
  });
  byId("run")?.addEventListener("change", (event) => {
    stop();
    setRun(Number(event.target.value));
  });
  const again = () => {
    state.shown = 25;
    drawTable();
  };
  byId("search").addEventListener("input", again);
  byId("only-test").addEventListener("change", again);
  byId("sort").addEventListener("change", (event) => {
    state.sort = event.target.value;
    again();
  });
  byId("more").addEventListener("click", () => {
    state.shown += 200;
    drawTable();
  });
  byId("main-plot").on("plotly_click", (event) => {
    const point = event.points.find((p) => p.data.meta === "points");
    if (point) select(point.customdata[0], false);
  });
  byId("score-plot").on("plotly_click", (event) => {
    const [index, layer] = event.points[0].customdata ?? [];
    if (index === state.run && run().map.layers.includes(layer)) setLayer(layer);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  let resizing = 0;
  addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(drawAll, 120);
  });
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.theme = "print";
    drawAll();
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.theme;
    drawAll();
  });
}

setRun(0);
drawScoreKey();
listen();
