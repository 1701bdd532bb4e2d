// Draws the figures that notebooks left in the page as JSON (docs/_ext/plotly_figures.py), in the page's own ink, and again when the
// reader changes between light and dark.
(function () {
  "use strict";
  var canvases = [];
  var narrow = window.matchMedia("(max-width: 600px)").matches;
  var config = {
    responsive: true, displayModeBar: narrow ? false : "hover", displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
    modeBarButtonsToRemove: ["lasso2d", "select2d"],
  };
  // Panels side by side keep their proportions on a phone, where the figure scrolls in its own box: squeezed, their titles overlap.
  var SIDE_BY_SIDE = 680;
  function sideBySide(layout) {
    var axes = Object.keys(layout).filter(function (name) { return /^xaxis\d*$/.test(name); });
    return new Set(axes.map(function (name) { return (layout[name].domain || [0])[0]; })).size > 1;
  }
  function ink() {
    var css = getComputedStyle(document.body);
    var text = css.getPropertyValue("--color-foreground-primary").trim(), panel = css.getPropertyValue("--color-background-secondary").trim();
    return {"font.color": text, "hoverlabel.bgcolor": panel, "hoverlabel.font.color": text};
  }
  function repaint() {
    canvases.forEach(function (canvas) { Plotly.relayout(canvas, ink()); });
  }
  document.querySelectorAll(".lrt-plot").forEach(function (plot) {
    var source = plot.querySelector("script"), figure = JSON.parse(source.textContent);
    plot.textContent = "";
    figure.layout.height = figure.layout.height || 450;
    figure.layout.autosize = true;
    delete figure.layout.width;
    var canvas = plot.appendChild(document.createElement("div"));
    canvas.style.minWidth = (sideBySide(figure.layout) ? SIDE_BY_SIDE : 0) + "px";
    canvases.push(canvas);
    Plotly.newPlot(canvas, figure.data, figure.layout, config).then(function () { return Plotly.relayout(canvas, ink()); });
  });
  new MutationObserver(repaint).observe(document.body, {attributes: true, attributeFilter: ["data-theme"]});
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
})();
