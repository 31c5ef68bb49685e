"use strict";
// Without this script the page is whole: all runs in their order, nothing hidden. With
// it tables sort, filters choose runs everywhere at once, plots are drawn (plots.js), and
// a page that is served follows the records as they grow.

const chosen = { model: new Set(), chip: new Set(), layout: new Set() };
const sorted = new Map(); // place of a table -> [heading, whether upwards]

function sortable(table, place) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const sort = (head, up) => {
    const index = heads.indexOf(head);
    heads.forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[index].dataset.value ?? "";
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const both = head.dataset.sort === "number" ? x - y : x.localeCompare(y);
      return up ? both : -both;
    };
    body.append(...[...body.rows].sort(order));
    sorted.set(place, [head.textContent, up]);
  };
  for (const head of heads) {
    if (head.dataset.sort === undefined) continue;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () =>
      sort(head, head.getAttribute("aria-sort") !== "ascending")
    );
  }
  const [heading, up] = sorted.get(place) ?? [];
  const again = heads.find((head) => head.textContent === heading);
  if (again) sort(again, up);
}

// --- Filters

function passes(facets, but) {
  return Object.entries(chosen).every(
    ([facet, values]) => facet === but || !values.size || values.has(facets[facet])
  );
}

function filterable(main, data) {
  const form = main.querySelector("form.filters");
  const boxes = [...form.querySelectorAll("input[type=checkbox]")];
  const facet = (box) => box.closest("[data-facet]").dataset.facet;
  const act = () => {
    const shown = new Set();
    for (const [run, facets] of Object.entries(data.runs))
      if (passes(facets)) shown.add(run);
    for (const part of main.querySelectorAll("[data-run]")) {
      const away = !shown.has(part.dataset.run);
      // A drawing keeps the place of what is left out; a list closes up.
      if (part instanceof SVGElement) part.classList.toggle("away", away);
      else part.hidden = away;
    }
    for (const menu of form.querySelectorAll("[data-facet]")) {
      const values = chosen[menu.dataset.facet];
      const all = menu.querySelectorAll("input").length;
      menu.querySelector(".chosen").textContent = !values.size
        ? `all ${all}`
        : values.size === 1 ? [...values][0] : `${values.size} of ${all}`;
      menu.classList.toggle("acts", values.size > 0);
    }
    for (const box of boxes) {
      const name = facet(box);
      const many = Object.values(data.runs).filter(
        (each) => each[name] === box.value && passes(each, name)
      ).length;
      box.parentElement.querySelector("small").textContent = many;
      box.parentElement.classList.toggle("none", !many);
    }
    const all = Object.keys(data.runs).length;
    form.querySelector(".shown").textContent =
      shown.size === all ? `all ${all} runs` : `${shown.size} of ${all} runs`;
    form.querySelector(".clear").hidden = shown.size === all;
    redraw(shown);
  };
  for (const box of boxes) {
    box.checked = chosen[facet(box)].has(box.value);
    box.addEventListener("change", () => {
      chosen[facet(box)][box.checked ? "add" : "delete"](box.value);
      act();
    });
  }
  form.querySelector(".clear").addEventListener("click", () => {
    for (const values of Object.values(chosen)) values.clear();
    for (const box of boxes) box.checked = false;
    act();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  return act;
}

// One menu is open at a time, and a click elsewhere or Escape closes it.
function closeMenus(but) {
  for (const menu of document.querySelectorAll("details.filter[open]"))
    if (menu !== but) menu.open = false;
}
document.addEventListener("click", (event) =>
  closeMenus(event.target.closest?.("details.filter"))
);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") closeMenus();
});

// --- Ways to a run

function openRun(run) {
  const found = document.getElementById(run);
  if (!found) return;
  found.open = true;
  found.scrollIntoView({ block: "center" });
}
addEventListener("hashchange", () => openRun(location.hash.slice(1)));
document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#run-"]');
  if (link) openRun(link.getAttribute("href").slice(1)); // a second click too
});

// --- Start, and follow

let current; // what is on the page: {main, data}

async function start(main) {
  main.querySelectorAll("table.sortable").forEach(sortable);
  const block = main.querySelector("#page-data");
  if (!block) return;
  const data = JSON.parse(block.textContent);
  for (const facet in chosen) // what no run has any more chooses nothing
    for (const value of chosen[facet])
      if (!Object.values(data.runs).some((each) => each[facet] === value))
        chosen[facet].delete(value);
  current = { main, data };
  const act = filterable(main, data);
  try {
    await draw(main, data);
  } finally {
    act(); // tables are filtered whether or not plots can be drawn
  }
}

async function swap(text) {
  const old = document.querySelector("main");
  const next = new DOMParser().parseFromString(text, "text/html").querySelector("main");
  if (!next) throw new Error("the server sent no page");
  const open = [...old.querySelectorAll("details[open][id]")].map((each) => each.id);
  const [focus, top] = [document.activeElement?.id, scrollY];
  for (const each of next.querySelectorAll("details[id]"))
    each.open = open.includes(each.id);
  // Plots keep their height while they are drawn again, so that nothing jumps.
  for (const each of old.querySelectorAll(".panels"))
    next.querySelector(`#${each.id}`)?.style.setProperty("min-height", `${each.offsetHeight}px`);
  old.replaceWith(next);
  await start(next);
  if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
  scrollTo(0, top);
}

async function follow(place) {
  const main = () => document.querySelector("main");
  const say = (text, lost) => {
    const line = main().querySelector(".live");
    line.textContent = text;
    line.classList.toggle("lost", lost);
  };
  let changed = "";
  for (;;) {
    await new Promise((done) => setTimeout(done, 1000));
    if (document.hidden) continue;
    try {
      const answer = await fetch(`${place}?after=${main().dataset.state}`);
      if (!answer.ok && answer.status !== 304) throw new Error(await answer.text());
      if (answer.status === 200) {
        await swap(await answer.text());
        changed = `, last change ${new Date().toLocaleTimeString()}`;
      }
      say(`Live: follows the records${changed}.`, false);
    } catch (error) {
      const why = error instanceof TypeError ? "the server does not answer" : error.message;
      say(`Not live: ${why}; what is shown is the last it said.`, true);
    }
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", async () => {
  if (!current) return;
  await draw(current.main, current.data);
  redraw(visible);
});
start(document.querySelector("main")).finally(() => {
  if (location.hash) openRun(location.hash.slice(1));
  if (document.body.dataset.follow) follow(document.body.dataset.follow);
});
