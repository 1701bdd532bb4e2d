"""The style sheet and the script of the HTML report, as text to put inline.

Problem: the page must be legible on a phone, on a desktop, in light and in dark, without a request
for a font or a style sheet. Mechanism: system fonts, colours as CSS custom properties with a second
set under `prefers-color-scheme: dark` (text and links have a contrast of at least 4.5:1 in both),
and boxes of their own in which wide content scrolls. The script draws each figure from the JSON
next to it and gives it the page's colours, again when the reader's setting changes.

Example:
    from lrt_lens.report._page import STYLE

    html = f"<style>{STYLE}</style>"

Limits: written for current browsers; printing does not expand collapsed tables.
"""

STYLE = """
:root{color-scheme:light dark;--ink:#1d232a;--soft:#56606b;--paper:#ffffff;
--panel:#f4f6f8;--rule:#d5dae0;--link:#0b5cad}
@media (prefers-color-scheme:dark){
:root{--ink:#e7ebef;--soft:#a9b3bd;--paper:#14181c;--panel:#1e242a;--rule:#39424c;--link:#7cbcff}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:1.5rem 1rem 3rem;max-width:72rem;background:var(--paper);
color:var(--ink);overflow-wrap:break-word;
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
h1,h2,h3,h4{line-height:1.25;margin:0}
h1{font-size:1.75rem}
h2{font-size:1.3rem;margin:2.5rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--rule)}
h3{font-size:1.05rem;margin:1.5rem 0 .5rem}
p{margin:.5rem 0;max-width:46rem}
a{color:var(--link)}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
.skip{position:absolute;left:-999rem}
.skip:focus{left:1rem;top:.5rem;background:var(--paper);padding:.25rem .5rem}
.subtitle,.note,.footer,.caption{color:var(--soft)}
.caption{font-size:.95rem;margin:.25rem 0}
.footer{margin-top:3rem;padding-top:.75rem;border-top:1px solid var(--rule);font-size:.875rem}
nav{margin:1.25rem 0;padding:.75rem 1rem;background:var(--panel);border-radius:.5rem}
nav h2{font-size:1rem;margin:0;padding:0;border:0}
nav ol{margin:.25rem 0 0;padding-left:1.4rem}
nav li{padding:.15rem 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.75rem;
margin:1rem 0}
.tiles div{background:var(--panel);border-radius:.5rem;padding:.75rem 1rem}
.tiles dt{font-size:.9rem;color:var(--soft)}
.tiles dd{margin:0}
.tiles .value{font-size:1.6rem;font-weight:600;line-height:1.3;font-variant-numeric:tabular-nums}
.tiles .note{font-size:.85rem}
.scroll{overflow-x:auto;max-width:100%}
.table,details,figure{margin:1rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .75rem;text-align:left;border-bottom:1px solid var(--rule);white-space:nowrap;
vertical-align:top}
thead th{border-bottom-width:2px;color:var(--soft);font-weight:600}
tbody th{font-weight:600}
.number{text-align:right}
summary{cursor:pointer;padding:.35rem 0;color:var(--link)}
.plot .updatemenu-item-rect{fill:var(--panel)!important;fill-opacity:1!important;
stroke:var(--rule)!important}
.plot .updatemenu-item-rect[style*="rgb(244, 250, 255)"]{fill:var(--rule)!important}
.plot .updatemenu-item-text,.plot .updatemenu-header-arrow{fill:var(--ink)!important}
.plot .heatmap-label text[style*="rgb(68, 68, 68)"]{fill:#000!important}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(14rem,1fr));gap:.75rem}
article{background:var(--panel);border-top:4px solid var(--rule);border-radius:.25rem;
padding:.6rem .9rem;min-width:0}
article h4{font-size:.85rem;color:var(--soft);font-weight:600}
article p{white-space:pre-wrap;overflow-wrap:anywhere}
article p+p{border-top:1px solid var(--rule);padding-top:.5rem}
@media print{body{max-width:none}nav,.skip{display:none}
article,figure,.tiles div{break-inside:avoid}}
"""
"""Style sheet of the page."""

# Must not contain "</script", which would end the script element.
SCRIPT = """
(function () {
  "use strict";
  // plotly.js 4 offers by default to upload the figure to a server: showSendToCloud is off
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function paint() {
    var css = getComputedStyle(document.documentElement);
    var ink = css.getPropertyValue("--ink").trim(), panel = css.getPropertyValue("--panel").trim();
    return {"font.color": ink, "hoverlabel.bgcolor": panel, "hoverlabel.font.color": ink};
  }
  // On a phone, panels side by side keep their proportions and the figure scrolls in its own box:
  // in a narrower figure their titles would overlap.
  var SIDE_BY_SIDE = 680;
  function sideBySide(layout) {
    var axes = Object.keys(layout).filter(function (name) { return /^xaxis[0-9]*$/.test(name); });
    return new Set(axes.map(function (name) { return (layout[name].domain || [0])[0]; })).size > 1;
  }
  function stack(layout, traces) {
    if (!layout.meta || layout.meta.panels !== 2) {
      layout.height += layout.showlegend === false ? 0 : 12 * traces;
      return;
    }
    var share = 0.5 - 65 / layout.height, tops = [1, share];
    layout.height = 2 * layout.height - 100;
    layout.coloraxis.colorbar.len = share;
    layout.coloraxis.colorbar.y = 1 - share / 2;
    ["", "2"].forEach(function (axis, panel) {
      Object.assign(layout["xaxis" + axis], {domain: [0, 1]});
      var domain = [tops[panel] - share, tops[panel]];
      Object.assign(layout["yaxis" + axis], {domain: domain, showticklabels: true});
      Object.assign(layout.annotations[panel], {x: 0.5, y: tops[panel]});
      Object.assign(layout.updatemenus[panel], {x: 0, y: tops[panel]});
    });
  }
  var plots = Array.prototype.slice.call(document.querySelectorAll(".plot"));
  var narrow = window.matchMedia("(max-width: 600px)").matches;
  var config = {responsive: true, displayModeBar: narrow ? false : "hover", displaylogo: false,
    showSendToCloud: false, plotlyServerURL: "", modeBarButtonsToRemove: ["lasso2d", "select2d"]};
  plots.forEach(function (plot) {
    var source = plot.querySelector("script"), figure = JSON.parse(source.textContent);
    source.remove();
    figure.layout.height = figure.layout.height || 450;
    if (sideBySide(figure.layout) && (figure.layout.meta || {}).panels !== 2) {
      plot.style.minWidth = SIDE_BY_SIDE + "px";
    } else if (narrow) {
      stack(figure.layout, figure.data.length);
    }
    plot.style.height = figure.layout.height + "px";
    Plotly.newPlot(plot, figure.data, figure.layout, config)
      .then(function () { return Plotly.relayout(plot, paint()); });
  });
  dark.addEventListener("change", function () {
    plots.forEach(function (plot) { Plotly.relayout(plot, paint()); });
  });
})();
"""
"""Script of the page; it runs after plotly.js, at the end of the body."""
