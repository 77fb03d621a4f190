/* The widgets ask MathJax 2 to typeset their labels; this passes the request to MathJax 3, and comes before embed.js. */
window.addEventListener("load", () => {
  window.MathJax = window.MathJax || {};
  window.MathJax.Hub = {
    Queue: ([, , element]) => window.MathJax.typesetPromise && window.MathJax.typesetPromise([element]),
  };
});
