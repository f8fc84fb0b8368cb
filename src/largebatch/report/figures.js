// What all pages share: the colours of the style sheet, the frame of a figure, curves switched off, when to draw again.
const Figures = (function () {
  "use strict";

  const onTouch = window.matchMedia("(pointer: coarse)").matches;
  const config = { displayModeBar: false, responsive: false, doubleClick: "reset", scrollZoom: false };

  function data() {
    return JSON.parse(document.getElementById("page-data").textContent);
  }

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const names = ["ink", "quiet", "card", "line", "grid", "blue", "orange", "green", "purple", "grey", "band"];
    const found = Object.fromEntries(names.map((name) => [name, style.getPropertyValue("--" + name).trim()]));
    found.font = style.getPropertyValue("--text").trim();
    return found;
  }

  function narrow(element) {
    return element.clientWidth < 480;
  }

  // Size, paper and axes, as every figure has them.
  function frame(element, ink) {
    return {
      width: element.clientWidth,
      height: element.clientHeight,
      margin: { l: narrow(element) ? 44 : 52, r: 8, t: 8, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: ink.font, size: 12, color: ink.quiet },
      showlegend: false,
      hoverlabel: { bgcolor: ink.card, bordercolor: ink.line, font: { color: ink.ink, size: 12 } },
      xaxis: {
        showgrid: false,
        zeroline: false,
        linecolor: ink.line,
        ticks: "outside",
        ticklen: 4,
        tickcolor: ink.line,
        spikethickness: 1,
        spikedash: "solid",
        spikecolor: ink.quiet,
        nticks: narrow(element) ? 5 : 8,
      },
      yaxis: { fixedrange: true, gridcolor: ink.grid, zeroline: false, ticks: "", automargin: true, nticks: 6 },
      shapes: [],
      annotations: [],
    };
  }

  function escaped(text) {
    return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  // Buttons of legends: hidden is figure -> names of the curves that are off.
  function switches(hidden, drawOne) {
    document.querySelectorAll(".legend button").forEach((button) => {
      button.addEventListener("click", () => {
        const id = button.closest("figure").querySelector(".plot").id;
        const off = hidden.get(id);
        const name = button.dataset.series;
        if (!off.delete(name)) off.add(name);
        button.setAttribute("aria-pressed", String(!off.has(name)));
        drawOne(id);
      });
    });
  }

  function whenShownOtherwise(draw) {
    let waiting = 0;
    let width = window.innerWidth;
    window.addEventListener("resize", () => {
      if (window.innerWidth === width) return; // a phone's address bar came or went
      width = window.innerWidth;
      window.clearTimeout(waiting);
      waiting = window.setTimeout(draw, 120);
    });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    // Print styles are in force by now: colours and widths are the paper's.
    window.matchMedia("print").addEventListener("change", draw);
    window.addEventListener("afterprint", draw);
  }

  return { onTouch, config, data, colours, narrow, frame, escaped, switches, whenShownOtherwise };
})();
