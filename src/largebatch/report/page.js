// Draws the figures from the JSON in the page. No state but the axis that was chosen and the curves switched off.
(function () {
  "use strict";

  const { onTouch, config, colours, narrow, frame, escaped } = Figures;
  const data = Figures.data();
  const hidden = new Map(data.charts.map((chart) => [chart.id, new Set()]));
  let axis = "steps";

  function layout(element, ink, height) {
    const last = data.bands.length ? data.bands[data.bands.length - 1][axis][1] : 1;
    const figure = frame(element, ink);
    figure.height = height;
    figure.margin.t = data.bands.length > 1 ? 22 : 8;
    figure.dragmode = onTouch ? false : "zoom";
    figure.hovermode = "x unified";
    Object.assign(figure.xaxis, {
      title: { text: axis, standoff: 6 },
      range: [0, last * 1.02],
      fixedrange: onTouch,
      tickformat: last >= 1e5 ? "~s" : ",d",
      unifiedhovertitle: { text: (axis === "steps" ? "step" : "samples") + " %{x:,d}" },
    });
    figure.shapes = data.bands.length > 1 ? bandShapes(ink) : [];
    figure.annotations = data.bands.length > 1 ? bandNames(element, ink) : [];
    return figure;
  }

  // Every second stage is shaded, and a line stands where a stage begins.
  function bandShapes(ink) {
    const shapes = [];
    data.bands.forEach((band, number) => {
      const edges = { xref: "x", yref: "paper", y0: 0, y1: 1, x0: band[axis][0] };
      if (number % 2) shapes.push({ ...edges, type: "rect", x1: band[axis][1], fillcolor: ink.band, line: { width: 0 }, layer: "below" });
      if (number) shapes.push({ ...edges, type: "line", x1: band[axis][0], line: { color: ink.quiet, width: 1, dash: "dot" } });
    });
    return shapes;
  }

  // The names stand above their stages; one that would run into its neighbour is left out on narrow screens.
  function bandNames(element, ink) {
    const last = data.bands[data.bands.length - 1][axis][1] * 1.02 || 1;
    const room = element.clientWidth - 70;
    const names = [];
    let taken = Infinity;
    data.bands.slice().reverse().forEach((band) => {
      const [from, to] = band[axis];
      const letters = band.name.length * 6.6 + 8;
      const atEnd = (room * (last - from)) / last < letters;
      const left = atEnd ? room - letters : (room * from) / last;
      if (left < 0 || left + letters > taken) return;
      taken = left;
      names.push({
        text: band.name, x: atEnd ? to : from, xref: "x", xanchor: atEnd ? "right" : "left",
        y: 1, yref: "paper", yanchor: "bottom", showarrow: false, font: { size: 11, color: ink.quiet }, borderpad: 2,
      });
    });
    return names;
  }

  // --- curves ---

  function trace(series, chart, ink) {
    const colour = ink[series.colour];
    const shape = {
      raw: { mode: "lines", opacity: 0.32, line: { color: colour, width: 1 } },
      line: { mode: "lines", line: { color: colour, width: 2 } },
      dots: { mode: "lines+markers", line: { color: colour, width: 2 }, marker: { color: colour, size: 6 } },
      dashed: { mode: "lines", line: { color: colour, width: 2, dash: "dash" } },
      crosses: { mode: "markers", marker: { color: colour, size: 9, symbol: "x-thin", line: { color: colour, width: 2 } } },
    }[series.style];
    // One point alone is no line; it is drawn as a mark.
    if (series.y.filter((y) => y !== null).length < 2 && series.style !== "crosses") {
      shape.mode = "markers";
      shape.marker = { color: colour, size: 7 };
    }
    if (series.style === "dots" && series.y.length > 100) shape.mode = "lines";
    const averaged = chart.series.some((other) => other.name === series.name && other.style === "raw");
    const label = averaged && series.style === "line" ? series.name + ", mean" : series.name;
    return {
      type: "scatter",
      name: escaped(label),
      x: series[axis],
      y: series.y,
      connectgaps: false,
      cliponaxis: series.style !== "dots" && series.style !== "crosses",
      visible: !hidden.get(chart.id).has(series.name),
      hovertemplate: series.style === "crosses" ? "skipped<extra></extra>" : "%{y}",
      ...shape,
    };
  }

  function drawChart(chart, ink) {
    const element = document.getElementById(chart.id);
    const figure = layout(element, ink, element.clientHeight);
    const vertical = figure.yaxis;
    vertical.tickformat = chart.percent ? ".0%" : undefined;
    vertical.hoverformat = chart.percent ? ".1%" : ".4~g";
    vertical.exponentformat = "power";
    if (chart.fromZero) vertical.rangemode = "tozero";
    if (chart.logarithmic) Object.assign(vertical, { type: "log", dtick: undefined, minor: { showgrid: false } });
    return Plotly.react(element, chart.series.map((series) => trace(series, chart, ink)), figure, config);
  }

  // --- the heat map ---

  function drawRatios(ratios, ink) {
    const element = document.getElementById("trust-ratio-map");
    const small = narrow(element);
    const figure = layout(element, ink, element.clientHeight);
    const row = (element.clientHeight - 62) / ratios.names.length;
    const rows = ratios.names.map((_, number) => number);
    const heat = {
      type: "heatmap",
      x: ratios[axis],
      y: rows,
      z: ratios.z,
      zmin: ratios.low,
      zmax: ratios.high,
      customdata: ratios.z.map((values, number) =>
        values.map((value) => [ratios.names[number], value === null ? "" : Number((10 ** value).toPrecision(3)).toString()])),
      hovertemplate: "%{customdata[0]}<br>" + axis + " %{x:,d}<br>ratio %{customdata[1]}<extra></extra>",
      hoverongaps: false,
      colorscale: ratios.colours,
      showscale: false,
    };
    const edge = ratios[axis].length > 1 ? (ratios[axis][1] - ratios[axis][0]) / 2 : 1;
    figure.xaxis.range = [Math.max(0, ratios[axis][0] - edge), ratios[axis][ratios[axis].length - 1] + edge];
    figure.hovermode = "closest";
    // A dark line below a light one can be seen on every colour of the map.
    const starts = figure.shapes.filter((shape) => shape.type === "line");
    figure.shapes = [
      ...starts.map((shape) => ({ ...shape, line: { color: "rgba(0,0,0,0.55)", width: 2.5 } })),
      ...starts.map((shape) => ({ ...shape, line: { color: "#ffffff", width: 1, dash: "dot" } })),
    ];
    figure.yaxis = {
      fixedrange: true,
      range: [ratios.names.length - 0.5, -0.5],
      tickvals: rows,
      ticktext: small ? ratios.narrowNames : ratios.names,
      tickfont: { size: Math.max(7, Math.min(11, row - 2)) },
      automargin: true,
      ticks: "outside",
      ticklen: 5,
      tickcolor: "rgba(0,0,0,0)",
      showgrid: false,
      zeroline: false,
    };
    return Plotly.react(element, [heat], figure, config);
  }

  // --- all of them ---

  function draw() {
    const ink = colours();
    data.charts.forEach((chart) => drawChart(chart, ink));
    if (data.ratios) drawRatios(data.ratios, ink);
    document.documentElement.dataset.drawn = axis;
  }

  document.querySelectorAll('input[name="axis"]').forEach((input) => {
    if (input.checked) axis = input.value; // a browser may restore the choice when it reloads the page
    input.addEventListener("change", () => {
      axis = input.value;
      draw();
    });
  });

  Figures.switches(hidden, (id) => drawChart(data.charts.find((one) => one.id === id), colours()));
  Figures.whenShownOtherwise(draw);
  draw();
})();
