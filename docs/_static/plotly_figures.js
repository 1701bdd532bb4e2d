// Draws the figures that notebooks left in the page as JSON (docs/_ext/plotly_figures.py), in the page's own ink, and again when the
// reader changes between light and dark.
(function () {
  "use strict";
  var plots = Array.prototype.slice.call(document.querySelectorAll(".lrt-plot"));
  var narrow = window.matchMedia("(max-width: 600px)").matches;
  var config = {
    responsive: true, displayModeBar: narrow ? false : "hover", displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
    modeBarButtonsToRemove: ["lasso2d", "select2d"],
  };
  // Panels side by side keep their proportions on a phone, where the figure scrolls in its own box: squeezed, their titles overlap.
  var SIDE_BY_SIDE = 680;
  function width(plot, layout) {
    var columns = Object.keys(layout).filter(function (name) { return /^xaxis\d*$/.test(name); }).map(function (name) {
      return (layout[name].domain || [0])[0];
    });
    return Math.max(plot.clientWidth, new Set(columns).size > 1 ? SIDE_BY_SIDE : 0);
  }
  function ink() {
    var css = getComputedStyle(document.body);
    var text = css.getPropertyValue("--color-foreground-primary").trim(), panel = css.getPropertyValue("--color-background-secondary").trim();
    return {"font.color": text, "hoverlabel.bgcolor": panel, "hoverlabel.font.color": text};
  }
  function repaint() {
    plots.forEach(function (plot) { Plotly.relayout(plot, ink()); });
  }
  plots.forEach(function (plot) {
    var source = plot.querySelector("script"), figure = JSON.parse(source.textContent);
    plot.textContent = "";
    figure.layout.height = figure.layout.height || 450;
    figure.layout.autosize = true;
    delete figure.layout.width;
    var canvas = plot.appendChild(document.createElement("div"));
    canvas.style.minWidth = width(plot, figure.layout) + "px";
    Plotly.newPlot(canvas, figure.data, figure.layout, config).then(function () { return Plotly.relayout(plot, ink()); });
  });
  new MutationObserver(repaint).observe(document.body, {attributes: true, attributeFilter: ["data-theme"]});
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
})();
