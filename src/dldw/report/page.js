"use strict";
(async function () {
  const root = document.documentElement;
  const charts = JSON.parse(document.getElementById("data").textContent);
  const chips = [...document.querySelectorAll(".chip")];
  const shown = new Set(chips.map((chip) => chip.dataset.method));
  const views = {};
  const picked = Object.fromEntries(charts.map((chart) => [chart.id, chart.choices.map(() => 0)]));
  window.dldw = { views, shown, drawn: false };

  const style = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const narrow = () => window.innerWidth < 600;

  function config() {
    const ink = style("--ink"), muted = style("--muted"), line = style("--line"), font = style("--sans");
    return {
      background: "transparent", font, padding: 2,
      view: { stroke: null },
      range: {
        ramp: [style("--ramp-0"), style("--ramp-1"), style("--ramp-2")],
        heatmap: [style("--land-0"), style("--land-1"), style("--land-2")],
      },
      axis: {
        labelColor: muted, titleColor: muted, gridColor: line, domainColor: line, tickColor: line,
        labelFontSize: narrow() ? 11 : 11.5, titleFontSize: 12, titleFontWeight: 500, titlePadding: 8, labelPadding: 5,
        labelLimit: narrow() ? 126 : 190, domain: false, ticks: false, labelOverlap: "greedy", labelSeparation: 8,
      },
      axisY: { labelColor: ink, titleAnchor: "end", titleAngle: 0, titleAlign: "left", titleX: 0, titleY: -14, grid: true },
      axisX: { grid: false, labelFlush: false },
      text: { font, fill: ink },
      rule: { color: ink },
    };
  }

  /* Methods have fixed places in the palette; the theme says what colour a place has. */
  function themed(value) {
    if (typeof value === "string") {
      return value.startsWith("colour-") ? style("--m" + value.slice(7)) : value.startsWith("--") ? style(value) : value;
    }
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, themed(inner)]));
    }
    return value;
  }

  function key(chart) {
    return chart.choices.map((choice, i) => choice.options[picked[chart.id][i]]).join("/");
  }

  async function draw(chart) {
    const plot = document.querySelector("#" + CSS.escape(chart.id) + " .plot");
    const spec = themed(chart.specs[key(chart)]);
    spec.datasets = { ...spec.datasets, ...chart.rows };
    const values = { shown: [...shown], ink: style("--ink"), paper: style("--card") };
    for (const param of spec.params) if (param.name in values) param.value = values[param.name];
    if (chart.square) spec.height = Math.round(Math.min(520, Math.max(260, plot.clientWidth * 0.8)));
    if (chart.aspect) spec.height = Math.round(plot.clientWidth * chart.aspect);
    if (chart.step) {
      const methods = new Set(chart.rows.rows.map((row) => row.method).filter((method) => shown.has(method)));
      spec.height = chart.step * Math.max(1, methods.size);
    }
    if (views[chart.id]) views[chart.id].finalize();
    const result = await vegaEmbed(plot, spec, {
      actions: false, renderer: "svg", config: config(), tooltip: { theme: root.dataset.theme },
    });
    views[chart.id] = result.view;
  }

  async function drawAll() {
    for (const chart of charts) await draw(chart);
  }

  function signal(name, value) {
    return Promise.all(charts.filter((chart) => !empty(chart) && views[chart.id])
      .map((chart) => views[chart.id].signal(name, value).runAsync()));
  }

  function empty(chart) {
    return !chart.rows.rows.some((row) => row.method === undefined || shown.has(row.method));
  }

  function filter() {
    for (const chip of chips) chip.setAttribute("aria-pressed", shown.has(chip.dataset.method));
    for (const row of document.querySelectorAll("tr[data-method]")) row.hidden = !shown.has(row.dataset.method);
    for (const chart of charts) document.getElementById(chart.id).classList.toggle("empty", empty(chart));
    const stepped = charts.filter((chart) => chart.step && !empty(chart));
    return Promise.all([signal("shown", [...shown]), ...stepped.map(draw)]);
  }

  function only(method) {
    shown.clear();
    for (const chip of chips) if (method === null || chip.dataset.method === method) shown.add(chip.dataset.method);
    return filter();
  }

  for (const chip of chips) {
    const method = chip.dataset.method;
    chip.addEventListener("click", () => {
      if (shown.has(method)) shown.delete(method); else shown.add(method);
      filter();
    });
    chip.addEventListener("dblclick", () => only(method));
    chip.addEventListener("pointerenter", () => shown.has(method) && signal("focus", method));
    chip.addEventListener("pointerleave", () => signal("focus", ""));
    chip.addEventListener("focus", () => chip.matches(":focus-visible") && shown.has(method) && signal("focus", method));
    chip.addEventListener("blur", () => signal("focus", ""));
  }
  const all = document.getElementById("all");
  if (all) all.addEventListener("click", () => only(null));

  for (const chart of charts) {
    const figure = document.getElementById(chart.id);
    for (const button of figure.querySelectorAll("[data-choice]")) {
      button.addEventListener("click", () => {
        const group = chart.choices.findIndex((choice) => choice.name === button.dataset.of);
        picked[chart.id][group] = Number(button.dataset.choice);
        for (const other of figure.querySelectorAll("[data-choice]")) {
          if (other.dataset.of === button.dataset.of) other.setAttribute("aria-pressed", other === button);
        }
        draw(chart);
      });
    }
    for (const button of figure.querySelectorAll("[data-save]")) {
      button.addEventListener("click", () => save(chart, button.dataset.save));
    }
  }

  function csv(rows) {
    const columns = [...new Set(rows.flatMap(Object.keys))];
    const cell = (value) => {
      const text = value === undefined || value === null ? "" : String(value);
      return /[",\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
    };
    return [columns.map(cell), ...rows.map((row) => columns.map((column) => cell(row[column])))]
      .map((cells) => cells.join(",")).join("\n") + "\n";
  }

  async function save(chart, kind) {
    const [text, type] = kind === "csv" ? [csv(chart.rows.rows), "text/csv"]
      : kind === "json" ? [JSON.stringify(chart.rows, null, 1), "application/json"]
      : [await views[chart.id].toSVG(), "image/svg+xml"];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = "dldw-" + chart.id + "." + kind;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("dldw-theme", root.dataset.theme); } catch (error) { /* storage may be off for local files */ }
    drawAll();
  });

  let wasNarrow = narrow(), waiting = 0;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (narrow() !== wasNarrow) { wasNarrow = narrow(); drawAll(); }
    }, 150);
  });

  await drawAll();
  window.dldw.drawn = true;
})();
