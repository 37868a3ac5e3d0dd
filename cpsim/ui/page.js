"use strict";
// Charts are drawn from the JSON in each figure; tables sort by the column whose head is pressed; the theme can be changed.
{
  const root = document.documentElement;
  const tip = document.getElementById("tip");
  const charts = [];
  const paper = { is: matchMedia("print").matches, width: 680, theme: undefined };
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const number = (value) => value === null || value === undefined ? "–"
    : value.toLocaleString("en", { maximumFractionDigits: Math.max(0, Math.min(6, 3 - Math.floor(Math.log10(Math.abs(value) || 1)))) });
  const short = (value) => {
    if (value === null) return "";
    const [size, unit] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([least]) => Math.abs(value) >= least * (least === 1e3 ? 10 : 1)) || [1, ""];
    return `${Number((value / size).toPrecision(6))}${unit}`;
  };
  const percentile = (x) => `${Number((100 * (1 - 1 / x)).toFixed(4))}%`;

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.read();
      this.place = figure.querySelector(".plot");
      this.shown = this.spec.series.map(() => true);
      this.makeLegend(figure);
      this.place.addEventListener("keydown", (event) => this.press(event));
      this.place.addEventListener("blur", () => { tip.hidden = true; });
      this.place.addEventListener("pointerleave", () => { tip.hidden = true; });
      this.draw();
      new ResizeObserver(() => {
        const width = this.place.clientWidth;
        if (!paper.is && width && this.plot && width !== this.plot.width) this.plot.setSize({ width, height: this.height() });
      }).observe(this.place);
    }

    read() {
      this.text = this.figure.querySelector("script").textContent;
      this.spec = JSON.parse(this.text);
    }

    renew() {
      if (this.figure.querySelector("script").textContent === this.text) return;
      const isWhole = this.reset.hidden;
      this.read();
      this.draw();
      if (isWhole) this.plot.setScale("x", { min: this.ends[0], max: this.ends[1] });
    }

    makeLegend(figure) {
      const legend = document.createElement("div");
      legend.className = "legend";
      this.spec.series.forEach((series, index) => {
        if (this.spec.series.length === 1 && !this.spec.group && this.spec.across !== "percentile") return;
        const key = document.createElement("button");
        key.type = "button";
        key.setAttribute("aria-pressed", "true");
        key.append(Object.assign(document.createElement("i"), { className: `k${series.colour}${series.dashed ? " dashed" : ""}` }), series.name);
        key.addEventListener("click", () => {
          this.shown[index] = !this.shown[index];
          key.setAttribute("aria-pressed", String(this.shown[index]));
          this.draw();
        });
        legend.append(key);
      });
      this.reset = Object.assign(document.createElement("button"), { type: "button", className: "reset", textContent: "Show all", hidden: true });
      this.reset.addEventListener("click", () => this.zoom(...this.ends));
      legend.append(this.reset);
      this.place.after(legend);
    }

    height() { return this.place.clientWidth < 500 ? 180 : 220; }

    moment(at) { return new Date(at * 1000).toLocaleString("sv", { timeZone: this.spec.zone }); }

    at(index) {
      const x = this.spec.x[index];
      if (this.spec.names) return this.spec.names[index];
      if (this.spec.across === "percentile") return percentile(x);
      if (this.spec.across === "time") return `${this.moment(x)} ${this.spec.zone}`;
      return number(x) + (this.spec.across === "seconds" ? " s" : "");
    }

    columns() {
      const { series, drawn } = this.spec;
      const shown = series.map((one, index) => this.shown[index] ? one.values : one.values.map(() => null));
      if (drawn !== "bars") return shown;
      return shown.map((_, index) => this.spec.x.map((_, row) => shown.slice(0, index + 1).reduce((sum, values) => sum + (values[row] || 0), 0)));
    }

    draw() {
      const { spec } = this;
      const scale = this.plot ? { ...this.plot.scales.x } : undefined;
      const bars = spec.drawn === "bars";
      const gap = bars ? Math.min(...spec.x.slice(1).map((x, index) => x - spec.x[index]), Infinity) : 0;
      const half = spec.x.length > 1 ? 0 : 0.5;
      const before = spec.names ? 0.5 : half;
      this.ends = [spec.x[0] - before, spec.x.at(-1) + (spec.names ? 0.5 : Math.max(half, Number.isFinite(gap) ? gap : 1))];
      this.plot?.destroy();
      const lines = spec.series.map((one, index) => {
        const ink = colour(`c${one.colour}`);
        const paths = bars ? uPlot.paths.bars({ size: [0.92, 400], align: spec.names ? 0 : 1 }) : spec.drawn === "steps" ? uPlot.paths.stepped({ align: 1 }) : undefined;
        return {
          label: one.name, stroke: ink, width: bars ? 0 : 2, dash: one.dashed ? [6, 4] : undefined, paths,
          fill: bars ? ink : spec.drawn === "area" ? `${ink}29` : undefined,
          points: bars ? { show: false } : { size: 5, fill: ink }, show: this.shown[index],
        };
      });
      const columns = this.columns();
      if (bars) { lines.reverse(); columns.reverse(); }
      this.plot = new uPlot(this.options(lines), [spec.x, ...columns], this.place);
      if (scale && scale.min !== null && scale.min !== undefined) this.plot.setScale("x", scale);
    }

    options(lines) {
      const { spec } = this;
      const axis = { stroke: colour("dim"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
      const part = (step) => step >= 86400 ? [0, 10] : step >= 60 ? [5, 16] : [11, 19];
      const marks = { time: (_, splits, axis, space, step) => splits.map((at) => this.moment(at).slice(...part(step))), percentile: (_, splits) => splits.map(percentile), names: (_, splits) => splits.map((at) => this.label(at)) };
      const values = spec.across in marks ? marks[spec.across] : (_, splits) => splits.map((x) => short(x) + (spec.across === "seconds" ? " s" : ""));
      const splits = { percentile: (_, axis, least, high) => [1, 2, 10, 100, 1e3, 1e4, 1e5].filter((at) => at >= least && at <= high), names: () => spec.x };
      const most = (_, least, high) => spec.log ? uPlot.rangeLog(least || 1, high || 1, 10, false) : [0, high > 0 ? high * 1.05 : 1];
      return {
        width: paper.is ? Math.min(paper.width, this.place.clientWidth || paper.width) : this.place.clientWidth || paper.width, height: this.height(),
        legend: { show: false },
        padding: [null, spec.across === "time" ? 28 : null, null, null],
        tzDate: (at) => uPlot.tzDate(new Date(at * 1000), spec.zone),
        scales: {
          x: { time: spec.across === "time", distr: spec.across === "percentile" ? 3 : 1, range: (_, least, high) => least === high || least === null ? this.ends : [least === spec.x[0] ? this.ends[0] : least, high === spec.x.at(-1) ? this.ends[1] : high] },
          y: { distr: spec.log ? 3 : 1, range: most },
        },
        axes: [{ ...axis, values, filter: spec.across === "percentile" ? (_, at) => at : undefined, splits: splits[spec.across], space: spec.across === "time" ? 90 : 60, size: 30 }, { ...axis, values: (_, ticks) => ticks.map(short), size: 56 }],
        series: [{}, ...lines],
        cursor: { y: false, points: { show: spec.drawn !== "bars" }, sync: spec.group ? { key: spec.group, scales: ["x", null] } : undefined },
        hooks: {
          drawClear: [(plot) => this.drawBands(plot)],
          setCursor: [() => this.tell()],
          setScale: [(plot, key) => { if (key === "x" && this.plot === plot) this.follow(plot.scales.x); }],
        },
      };
    }

    label(at) {
      const name = this.spec.names[at] ?? "";
      return name.length > 14 ? `${name.slice(0, 13)}…` : name;
    }

    drawBands(plot) {
      const { ctx, bbox } = plot;
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      for (const [begin, end, , name] of this.spec.bands) {
        const [from, to] = [begin, end].map((x) => plot.valToPos(x, "x", true));
        ctx.fillStyle = `${colour(name)}2e`;
        ctx.fillRect(from, bbox.top, Math.max(to - from, 2), bbox.height);
      }
      ctx.fillStyle = colour("open");
      for (const at of this.spec.ticks) ctx.fillRect(plot.valToPos(at, "x", true), bbox.top, devicePixelRatio, 7 * devicePixelRatio);
      ctx.restore();
    }

    follow({ min, max }) {
      this.reset.hidden = min <= this.spec.x[0] && max >= this.spec.x.at(-1);
      if (!this.spec.group || paper.is) return;
      for (const other of charts)
        if (other !== this && other.spec.group === this.spec.group && other.plot && (other.plot.scales.x.min !== min || other.plot.scales.x.max !== max))
          other.plot.setScale("x", { min, max });
    }

    zoom(min, max) {
      if (this.spec.x.filter((x) => x >= min && x <= max).length > 1 || max - min >= this.ends[1] - this.ends[0]) this.plot.setScale("x", { min, max });
    }

    press(event) {
      const { plot, spec } = this;
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const last = spec.x.length - 1;
      const now = this.index ?? -1;
      const step = event.shiftKey ? 10 : 1;
      const to = { ArrowRight: Math.min(last, now + step), ArrowLeft: Math.max(0, now - step), Home: 0, End: last }[event.key];
      if (to !== undefined) {
        this.index = to;
        plot.setCursor({ left: plot.valToPos(spec.x[to], "x"), top: plot.over.clientHeight / 3 });
      } else if (event.key === "+" || event.key === "-") {
        const middle = spec.x[Math.max(now, 0)], { min, max } = plot.scales.x, factor = event.key === "+" ? 0.5 : 2;
        this.zoom(Math.max(this.ends[0], middle - (middle - min) * factor), Math.min(this.ends[1], middle + (max - middle) * factor));
      } else if (event.key === "Escape") {
        this.zoom(...this.ends);
        tip.hidden = true;
      } else return;
      event.preventDefault();
    }

    tell() {
      const { plot, place, spec } = this;
      if (!plot || !(place.matches(":hover") || document.activeElement === place)) return;
      const index = plot.cursor.idx;
      tip.hidden = index === null || index === undefined || plot.cursor.left < 0;
      if (tip.hidden) return;
      this.index = index;
      const x = spec.x[index];
      const on = spec.bands.filter(([begin, end]) => begin <= x && x <= end).map(([, , name]) => name);
      tip.textContent = [`${spec.xName} ${this.at(index)}`, ...spec.series.map((one) => `${one.name} ${number(one.values[index])}`), ...on].join("\n");
      const box = plot.over.getBoundingClientRect();
      const left = box.left + plot.cursor.left, beyond = left + 14 + tip.offsetWidth > innerWidth;
      tip.style.left = `${beyond ? Math.max(4, left - 14 - tip.offsetWidth) : left + 14}px`;
      tip.style.top = `${Math.max(4, Math.min(box.top + 14, innerHeight - tip.offsetHeight - 4))}px`;
    }
  }

  const redraw = () => charts.forEach((chart) => chart.draw());
  const print = (is) => {
    if (is === paper.is) return;
    if (is) paper.theme = root.dataset.theme;
    paper.is = is;
    if (is) root.dataset.theme = "light";
    else if (paper.theme === undefined) delete root.dataset.theme;
    else root.dataset.theme = paper.theme;
    redraw();
  };
  if (paper.is) root.dataset.theme = "light";
  const begin = () => {
    for (const figure of document.querySelectorAll("figure.chart"))
      if (!charts.some((chart) => chart.figure === figure)) charts.push(new Chart(figure));
  };
  begin();
  document.addEventListener("figures", () => {  // a page whose figures change says so
    charts.splice(0, Infinity, ...charts.filter((chart) => chart.figure.isConnected));
    charts.forEach((chart) => chart.renew());
    begin();
  });
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  matchMedia("print").addEventListener("change", (event) => print(event.matches));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
      const numeric = head.classList.contains("num");
      const before = head.getAttribute("aria-sort");
      const downwards = before === "ascending" || (numeric && before === "none");
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", downwards ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const compare = numeric ? (a, b) => Number(a) - Number(b) : (a, b) => (a < b ? -1 : a > b ? 1 : 0);
      const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
      const filled = rows.filter(([value]) => value !== "");
      filled.sort((a, b) => (downwards ? -1 : 1) * compare(a[0], b[0]));
      table.tBodies[0].append(...filled.concat(rows.filter(([value]) => value === "")).map(([, row]) => row));
    }));
  }

  document.addEventListener("toggle", ({ target }) => {
    for (const figure of target.open ? target.querySelectorAll(":scope > figure.late-chart") : []) {
      figure.className = "chart";
      charts.push(new Chart(figure));
    }
  }, true);

  const least = 12;  // rows that one need not search
  const search = (place, items) => {
    if (items.length < least) return;
    const field = Object.assign(document.createElement("input"), { type: "search", placeholder: "Search" });
    field.setAttribute("aria-label", `Search: ${place.getAttribute("aria-label")}`);
    const found = Object.assign(document.createElement("output"), { textContent: "" });
    const box = Object.assign(document.createElement("p"), { className: "search" });
    box.append(field, " ", found);
    place.before(box);
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const item of items) item.hidden = !words.every((word) => item.textContent.toLowerCase().includes(word));
      found.textContent = words.length ? `${items.filter((item) => !item.hidden).length} of ${items.length}` : "";
    });
  };
  for (const place of document.querySelectorAll("[data-search]")) {
    const rows = place.querySelectorAll("tbody tr");
    search(place, [...(place.matches(".outline") ? place.children : rows)]);
  }

  const unfoldTarget = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target?.matches("details")) return;
    target.hidden = false;
    target.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", unfoldTarget);
  unfoldTarget();

  for (const unfold of document.querySelectorAll(".unfold")) {
    unfold.hidden = false;
    unfold.addEventListener("click", () => {
      const folded = [...unfold.closest("section").querySelectorAll("details.card")];
      const open = folded.some((card) => !card.open);
      folded.forEach((card) => { card.open = open; });
      unfold.textContent = open ? "Fold all" : "Unfold all";
    });
  }

  const button = document.querySelector(".theme");
  button.hidden = false;
  button.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    redraw();
  });
}
