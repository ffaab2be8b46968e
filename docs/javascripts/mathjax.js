// The mathematics, marked up by arithmatex.
window.MathJax = {
  tex: {inlineMath: [['\\(', '\\)']], displayMath: [['\\[', '\\]']]},
  options: {ignoreHtmlClass: '.*|', processHtmlClass: 'arithmatex'},
};
