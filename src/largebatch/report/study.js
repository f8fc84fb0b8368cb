// Draws the figures of a study from the JSON in the page. No state but the curves switched off.
(function () {
  "use strict";

  const { config, colours, narrow, frame } = Figures;
  const data = Figures.data();
  const hidden = new Map(data.figures.map((figure) => [figure.id, new Set()]));

  function axis(base, wanted, element) {
    const made = { ...base, title: { text: wanted.title || "", standoff: 6 }, automargin: true };
    if (wanted.percent) Object.assign(made, { tickformat: ".0%", hoverformat: ".2%" });
    else made.hoverformat = ".4~g";
    if (wanted.log) Object.assign(made, { type: "log", minor: { showgrid: false } });
    if (wanted.values) {
      const every = narrow(element) && wanted.log ? Math.ceil(wanted.values.length / 5) : 1;
      const kept = wanted.values.map((_, number) => number).filter((number) => number % every === 0);
      made.tickvals = kept.map((number) => wanted.values[number]);
      made.ticktext = kept.map((number) => wanted.texts[number]);
    }
    if (wanted.reversed) made.range = [wanted.values.length - 0.5, -0.5];
    if (wanted.hidden) Object.assign(made, { visible: false });
    return made;
  }

  function trace(wanted, figure, ink) {
    const colour = ink[wanted.colour];
    const made = {
      type: "scatter",
      name: wanted.name,
      x: wanted.x,
      y: wanted.y,
      mode: wanted.mode,
      opacity: wanted.opacity || 1,
      line: { color: colour, width: wanted.width || 2, dash: wanted.dash },
      marker: { color: colour, symbol: wanted.symbol, size: wanted.size || 6 },
      connectgaps: false,
      visible: !hidden.get(figure.id).has(wanted.name),
      hoverinfo: wanted.hover ? undefined : "skip",
      hovertemplate: wanted.hover ? wanted.name + ", " + wanted.hover + ": %{x}, %{y}<extra></extra>" : undefined,
    };
    if (wanted.low) {
      const across = figure.y.reversed;
      made[across ? "error_x" : "error_y"] = {
        type: "data", symmetric: false, array: wanted.high, arrayminus: wanted.low, color: colour, thickness: 1.6, width: 5,
      };
    }
    return made;
  }

  // The upright axes of the parallel coordinates, with what stands at their feet and heads.
  function uprights(figure, made, ink) {
    const ends = figure.x.parallel;
    made.xaxis.range = [-0.35, ends.length - 0.65];
    made.xaxis.ticks = "";
    made.yaxis.range = [-0.2, 1.12];
    ends.forEach(([foot, head], number) => {
      made.shapes.push({
        type: "line", x0: number, x1: number, y0: 0, y1: 1, line: { color: ink.quiet, width: 1 }, layer: "below",
      });
      const text = { x: number, showarrow: false, font: { size: 11, color: ink.quiet }, bgcolor: ink.card };
      made.annotations.push({ ...text, y: 0, text: foot, yanchor: "top", yshift: -3 });
      made.annotations.push({ ...text, y: 1, text: head, yanchor: "bottom", yshift: 3 });
    });
  }

  function drawFigure(figure, ink) {
    const element = document.getElementById(figure.id);
    const made = frame(element, ink);
    made.hovermode = "closest";
    made.dragmode = false;
    made.xaxis = axis({ ...made.xaxis, fixedrange: true }, figure.x, element);
    made.yaxis = axis(made.yaxis, figure.y, element);
    if (figure.x.parallel) uprights(figure, made, ink);
    return Plotly.react(element, figure.traces.map((one) => trace(one, figure, ink)), made, config);
  }

  function draw() {
    const ink = colours();
    data.figures.forEach((figure) => drawFigure(figure, ink));
    document.documentElement.dataset.drawn = "all";
  }

  Figures.switches(hidden, (id) => drawFigure(data.figures.find((one) => one.id === id), colours()));
  Figures.whenShownOtherwise(draw);
  draw();
})();
