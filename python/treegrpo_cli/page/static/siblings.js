/* Siblings side by side, from the token where they part. */
(() => {
  treegrpo.register({
    name: "siblings",
    slot: "none",
    start() {
      document.getElementById("siblings").hidden = true;
    },
  });
})();
