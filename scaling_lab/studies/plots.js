"use strict";
// The plots: plain Vega-Lite, given the rows that the filters let through.

let views = []; // {view, sets: all rows by name, told: says what is shown}
let quantity; // the one chosen, by name
let visible; // the runs that the filters let through
let work = Promise.resolve(); // one drawing after another

function redraw(shown) {
  visible = shown;
  for (const { view, sets, told } of views) {
    for (const [name, rows] of Object.entries(sets))
      view.data(name, rows.filter((row) => shown.has(row.run)));
    view.runAsync();
    told?.(shown);
  }
}

function draw(main, data) {
  work = work.catch(() => {}).then(() => drawAll(main, data));
  return work;
}

async function drawAll(main, data) {
  for (const { view } of views) view.finalize();
  views = [];
  for (const figure of main.querySelectorAll("figure.drawn")) figure.hidden = false;
  const levels = main.querySelector("#plot-agreement");
  if (levels) {
    const choice = main.querySelector("#quantity");
    if (data.agreement.some((each) => each.name === quantity)) choice.value = quantity;
    choice.onchange = async () => {
      quantity = choice.value;
      await draw(main, data);
      redraw(visible);
    };
    await drawAgreement(levels, data.agreement, choice.value);
  }
  const losses = main.querySelector("#plot-loss");
  if (losses) await drawLoss(losses, data.loss);
}

async function drawAgreement(place, levels, name) {
  const found = levels.find((each) => each.name === name);
  place.replaceChildren();
  for (const panel of found.panels) {
    const words = document.createElement("p");
    const box = document.createElement("div");
    const whole = document.createElement("div");
    whole.className = "panel-drawn";
    whole.append(box, words);
    place.append(whole);
    const told = (shown) => {
      words.textContent = agreementWords(panel.points.filter((each) => shown.has(each.run)));
    };
    const spec = agreementSpec(panel, found.unit);
    await embed(box, spec, { points: panel.points }, told);
  }
}

async function drawLoss(place, data) {
  place.replaceChildren();
  const box = document.createElement("div");
  place.append(box);
  const sets = { points: data.points, curves: data.curves };
  await embed(box, lossSpec(data), sets);
}

async function embed(box, spec, sets, told) {
  const options = {
    mode: "vega-lite", renderer: "svg", actions: false, ast: true, config: looks(),
    tooltip: { theme: "custom" },
  };
  const { view } = await vegaEmbed(box, spec, options);
  view.addEventListener("click", (_, item) => {
    const run = item?.datum?.run;
    if (run) openRun(run);
  });
  views.push({ view, sets, told });
}

// --- What they look like

function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function looks() {
  const [text, quiet, grid, font] = ["--ink", "--quiet", "--grid", "--sans"].map(ink);
  return {
    background: "transparent", font, view: { stroke: null },
    axis: {
      labelColor: quiet, titleColor: quiet, gridColor: grid, domainColor: quiet,
      tickColor: grid, labelFontSize: 10.5, titleFontSize: 11, titleFontWeight: "normal",
      labelOverlap: "greedy", titlePadding: 7,
    },
    rule: { color: text }, line: { color: text },
  };
}

function hues(rows) {
  const names = [...new Set(rows.map((row) => row.hue))];
  return { domain: names, range: names.map((name) => ink(`--${name}`)) };
}

const dot = { type: "point", size: 42, strokeWidth: 1.4, cursor: "pointer", clip: true };

function dots(rows, x, y, tooltip) {
  return {
    data: { name: "points", values: rows },
    mark: dot,
    encoding: {
      x, y, tooltip, description: { field: "label" },
      color: { field: "hue", type: "nominal", scale: hues(rows), legend: null },
      fill: {
        condition: { test: "datum.ok", field: "hue", type: "nominal", scale: hues(rows), legend: null },
        value: "transparent",
      },
    },
  };
}

function reach(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const pad = Math.max(1.12, (high / low) ** 0.06);
  return [low / pad, high * pad];
}

function agreementSpec(panel, unit) {
  const { x: across, y: upwards, points, band } = panel;
  const [low, high] = reach(points.flatMap((each) => [each.x, each.y]));
  const scale = { type: "log", domain: [low, high], nice: false };
  const axis = { format: "~g", tickCount: 4 };
  const at = (field, level) => ({
    field, type: "quantitative", scale, axis, title: `${level}, ${unit}`,
  });
  const [x, y] = [at("x", across), at("y", upwards)];
  const ends = [low, high];
  const tooltip = [
    { field: "label", title: "run" },
    { field: "x", title: `${across}, ${unit}`, format: ".4~g" },
    { field: "y", title: `${upwards}, ${unit}`, format: ".4~g" },
  ];
  const layer = [];
  if (band) {
    tooltip.push({ field: "low", title: "80 % from", format: ".4~g" });
    tooltip.push({ field: "high", title: "80 % to", format: ".4~g" });
    layer.push({
      data: { values: ends.map((each) => ({ x: each, y: each * band[0], y2: each * band[1] })) },
      mark: { type: "area", color: ink("--quiet"), opacity: 0.16, clip: true },
      encoding: { x, y, y2: { field: "y2" } },
    });
  }
  layer.push({
    data: { values: ends.map((each) => ({ x: each, y: each })) },
    mark: { type: "line", strokeWidth: 1, color: ink("--quiet"), clip: true },
    encoding: { x, y },
  });
  layer.push(dots(points, x, y, tooltip));
  return { width: 180, height: 180, layer };
}

function agreementWords(points) {
  const runs = `${points.length} run${points.length === 1 ? "" : "s"}`;
  if (!points.length) return runs;
  const errors = points.map((each) => Math.abs(each.x / each.y - 1)).sort((a, b) => a - b);
  const middle = (errors[(errors.length - 1) >> 1] + errors[errors.length >> 1]) / 2;
  const judged = points.filter((each) => each.low && each.high);
  const inside = judged.filter((each) => each.low <= each.y && each.y <= each.high);
  const held = judged.length ? `, ${inside.length} of ${judged.length} within their interval` : "";
  return `${runs}, median error ${(100 * middle).toFixed(1)} %${held}`;
}

function lossSpec(data) {
  const rows = [...data.points, ...data.curves, ...data.frontier, ...data.optima];
  const [low, high] = reach(data.points.map((each) => each.x));
  const shown = rows.filter((each) => each.x >= low && each.x <= high).map((each) => each.y);
  const [least, most] = [Math.min(...shown), Math.max(...shown)];
  const pad = (most - least || most) * 0.05;
  const x = {
    field: "x", type: "quantitative", title: "training compute, FLOPs (6 N D)",
    scale: { type: "log", domain: [low, high], nice: false }, axis: { format: ".0e", tickCount: 6 },
  };
  const y = {
    field: "y", type: "quantitative", title: `loss, ${data.loss}`,
    scale: { domain: [least - pad, most + pad], nice: false, zero: false }, axis: { format: "~g" },
  };
  const tooltip = [
    { field: "label", title: "run" },
    { field: "params", title: "parameters" },
    { field: "tokens", title: "tokens" },
    { field: "x", title: "FLOPs", format: ".3~g" },
    { field: "y", title: "loss", format: ".5~g" },
  ];
  const layer = [
    {
      data: { name: "curves", values: data.curves },
      mark: { type: "line", strokeWidth: 0.9, opacity: 0.45, clip: true },
      encoding: {
        x, y, detail: { field: "run" },
        color: { field: "hue", type: "nominal", scale: hues(data.points), legend: null },
      },
    },
    dots(data.points, x, y, tooltip),
    {
      data: { values: data.optima },
      mark: { type: "point", size: 130, filled: false, color: ink("--ink"), clip: true },
      encoding: { x, y },
    },
    {
      data: { values: data.frontier },
      mark: { type: "line", strokeWidth: 1.6, strokeDash: [5, 3], color: ink("--ink"), clip: true },
      encoding: { x, y },
    },
  ];
  return { width: 690, height: 300, layer };
}
