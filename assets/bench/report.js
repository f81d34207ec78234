// Draws the charts from the results in the page, and again when the reader's colours change.
// Out: `data-charts` at the body says how many have been drawn, `data-error` what went wrong.
(() => {
  "use strict";
  const results = JSON.parse(document.getElementById("results").textContent);
  // One colour for each mode, apart in both schemes and to the colour-blind (after Okabe and Ito).
  const colours = {
    "event-file": ["#8a6d00", "#f0c541"],
    "event-kafka at-least-once": ["#b34700", "#ff9a5c"],
    "event-kafka exactly-once": ["#a3246b", "#f590c6"],
    "replicate": ["#0064a8", "#5fb4f0"],
    "both": ["#6247aa", "#b8a2f5"],
    "native": ["#00735a", "#4fcfae"],
    "pglogical": ["#4d7a00", "#a6d64e"],
    "pg_recvlogical": ["#5c6470", "#b3bac4"],
    "no consumer": ["#1b1f24", "#e6e9ed"],
  };
  const parts = [
    ["cpu_source", "source", ["#0064a8", "#5fb4f0"]],
    ["cpu_reader", "reader", ["#b34700", "#ff9a5c"]],
    ["cpu_broker", "broker", ["#a3246b", "#f590c6"]],
    ["cpu_target", "target", ["#00735a", "#4fcfae"]],
  ];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const pick = (pair) => (pair || ["#5c6470", "#b3bac4"])[dark.matches ? 1 : 0];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const of = (workload, figure) => results.measured.filter((one) => one.workload === workload && one.figure === figure);
  let drawn = [];

  function options(x, y) {
    const axis = (more) => ({
      ticks: { color: css("--quiet"), ...more.ticks },
      grid: { color: css("--line") },
      title: { display: Boolean(more.title), text: more.title || "", color: css("--quiet") },
      ...more.own,
    });
    return {
      responsive: true,
      maintainAspectRatio: false,
      animation: false,
      plugins: { legend: { labels: { color: css("--text"), boxWidth: 14, filter: (item) => !(item.text ?? "").startsWith("_") } } },
      scales: { x: axis(x), y: axis(y) },
    };
  }

  function draw(id, config) {
    const canvas = document.getElementById(id);
    if (canvas) drawn.push(new Chart(canvas, config));
  }

  function throughput(workload, nth) {
    const measured = of(workload, "throughput");
    const drawing = options({ title: "changes/s", own: { beginAtZero: true } }, {});
    drawing.indexAxis = "y";
    drawing.plugins.legend.display = false;
    drawing.plugins.tooltip = { callbacks: { label: (item) => {
      const one = measured[item.dataIndex];
      return `${Math.round(one.median)} changes/s (${Math.round(one.least)} to ${Math.round(one.most)})`;
    } } };
    draw(`throughput-${nth}`, {
      type: "bar",
      data: {
        labels: measured.map((one) => one.mode),
        datasets: [{ data: measured.map((one) => one.median), backgroundColor: measured.map((one) => pick(colours[one.mode])) }],
      },
      options: drawing,
    });
  }

  function cpu(workload, nth) {
    const modes = [...new Set(parts.flatMap(([figure]) => of(workload, figure).map((one) => one.mode)))];
    const drawing = options({ title: "CPU seconds for a million changes", own: { stacked: true, beginAtZero: true } }, { own: { stacked: true } });
    drawing.indexAxis = "y";
    const datasets = parts.map(([figure, label, pair]) => {
      const found = new Map(of(workload, figure).map((one) => [one.mode, one.median]));
      return { label, data: modes.map((mode) => found.get(mode) ?? null), backgroundColor: pick(pair) };
    });
    draw(`cpu-${nth}`, {
      type: "bar",
      data: { labels: modes, datasets: datasets.filter((set) => set.data.some((value) => value !== null)) },
      options: drawing,
    });
  }

  // Percentiles as far from each other as they are rare: 90, 99 and 99.9 are as many steps.
  const rareness = (percentile) => -Math.log10(1 - Math.min(percentile, 99.999) / 100);

  function latency(workload, nth) {
    const curves = results.latency_curves.filter((curve) => curve.workload === workload);
    const names = new Map([[0, "0 %"], [1, "90 %"], [2, "99 %"], [3, "99.9 %"], [4, "99.99 %"]]);
    const drawing = options(
      { title: "of the probes", own: { type: "linear", min: 0 }, ticks: { stepSize: 1, callback: (value) => names.get(value) ?? "" } },
      { title: "ms from commit to visible", own: { type: "logarithmic" } },
    );
    draw(`latency-${nth}`, {
      type: "line",
      data: {
        datasets: curves.map((curve) => ({
          label: curve.mode,
          data: curve.points.filter(([percentile]) => percentile < 100).map(([percentile, ms]) => ({ x: rareness(percentile), y: Math.max(ms, 0.01) })),
          borderColor: pick(colours[curve.mode]),
          backgroundColor: pick(colours[curve.mode]),
          borderWidth: 2, pointRadius: 2, tension: 0.2,
        })),
      },
      options: drawing,
    });
  }

  function lag(workload, nth) {
    const curves = results.lag_curves.filter((curve) => curve.workload === workload);
    const named = new Set();
    const drawing = options(
      { title: "seconds since the burst began", own: { type: "linear" } },
      { title: "ms from commit to visible", own: { type: "logarithmic" } },
    );
    draw(`lag-${nth}`, {
      type: "line",
      data: {
        datasets: curves.map((curve) => {
          // Every run is drawn; the legend names a mode once.
          const label = named.has(curve.mode) ? `_${curve.mode}` : curve.mode;
          named.add(curve.mode);
          return {
            label,
            data: curve.points.map(([x, y]) => ({ x, y: Math.max(y, 0.01) })),
            borderColor: pick(colours[curve.mode]),
            backgroundColor: pick(colours[curve.mode]),
            borderWidth: 1.5, pointRadius: 0,
          };
        }),
      },
      options: drawing,
    });
  }

  function drawAll() {
    drawn.forEach((chart) => chart.destroy());
    drawn = [];
    try {
      results.workloads.forEach((workload, nth) => {
        throughput(workload.name, nth);
        cpu(workload.name, nth);
        latency(workload.name, nth);
        lag(workload.name, nth);
      });
      document.body.dataset.charts = String(drawn.length);
    } catch (error) {
      document.body.dataset.error = String(error);
    }
  }

  dark.addEventListener("change", drawAll);
  drawAll();
})();
