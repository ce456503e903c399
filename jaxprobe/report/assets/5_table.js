// The searchable table of entities.

/** A name as it is searched: without accents and capitals. */
const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();

/** Rows whose name holds what is searched, in the chosen order. */
function matches(of) {
  const texts = once(table(of), "plain", () => table(of).text.map(plain));
  const wanted = plain(byId("search").value.trim());
  const only = byId("only-test").checked;
  const test = isTest(of);
  const found = Array.from(texts.keys()).filter((row) => (!only || test[row]) && texts[row].includes(wanted));
  if (state.sort === "row") return found;
  const keys = state.sort === "name" ? texts : sortableErrors(of, state.sort === "least" ? 1 : -1);
  return found.sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : a - b));
}

/** Errors times a sign; rows without one come last either way. */
function sortableErrors(of, sign) {
  const errors_ = Array.from(table(of).text.keys(), (row) => sign * headlineError(of, row));
  return errors_.map((error) => (Number.isFinite(error) ? error : Infinity));
}

function drawTable() {
  const of = run();
  const groups = Object.keys(table(of).groups);
  const found = matches(of);
  const heads = [
    "name",
    ...groups.map(spaced),
    ...of.targets.map((target) => "true " + spaced(target)),
    ...of.targets.map((target) => "predicted " + spaced(target)),
    "error" + (unitOf(of) && ", " + unitOf(of)),
  ];
  const head = document.createElement("tr");
  heads.forEach((title, i) => head.append(cell("th", title, i > groups.length)));
  head.querySelectorAll("th").forEach((th) => (th.scope = "col"));
  byId("entities").tHead.replaceChildren(head);
  byId("entities").tBodies[0].replaceChildren(...found.slice(0, state.shown).map((row) => tableRow(of, groups, row)));
  byId("found").textContent = `${number(found.length, 0)} of ${number(table(of).text.length, 0)} entities`;
  byId("more").hidden = found.length <= state.shown;
}

function tableRow(of, groups, row) {
  const line = document.createElement("tr");
  const first = document.createElement("th");
  const button = document.createElement("button");
  button.type = "button";
  button.dir = "auto";
  button.textContent = table(of).text[row];
  button.addEventListener("click", () => select(row, true));
  first.scope = "row";
  first.append(button);
  line.append(first, ...groups.map((group) => cell("td", groupLabel(of, group, row), false)));
  line.append(...of.targets.map((_, target) => cell("td", targetText(of, truth(of, target)[row], target), true)));
  if (isTest(of)[row]) {
    line.append(...of.targets.map((_, target) => cell("td", targetText(of, headlineColumn(of, target)[row], target), true)));
    line.append(cell("td", number(headlineError(of, row), errorDigits(of)), true));
  } else {
    const note = cell("td", "training row", true);
    note.colSpan = of.targets.length + 1;
    note.className = "quiet number";
    line.append(note);
  }
  return line;
}

function cell(tag, text, isNumber) {
  const element = document.createElement(tag);
  element.textContent = text;
  element.dir = isNumber ? "ltr" : "auto";
  if (isNumber) element.className = "number";
  return element;
}
