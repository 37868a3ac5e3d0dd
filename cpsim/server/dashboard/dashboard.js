"use strict";
// The dashboard: the theme is kept, and the form of faults shows what a fault takes.
{
  const root = document.documentElement;
  const kept = sessionStorage.getItem("theme");
  if (kept) root.dataset.theme = kept;
  new MutationObserver(() => {
    if (root.dataset.theme) sessionStorage.setItem("theme", root.dataset.theme);
    else sessionStorage.removeItem("theme");
  }).observe(root, { attributes: true, attributeFilter: ["data-theme"] });

  const form = document.querySelector("form.fault");
  if (form) {
    const help = form.querySelector("#value-is");
    const choose = () => {
      const { takes, default: usual, state } = form.elements.action.selectedOptions[0].dataset;
      form.elements.value.disabled = !takes;
      form.elements.value.required = takes && !usual;
      form.elements.value.placeholder = usual || "";
      help.textContent = takes || "none";
      for (const name of ["kind", "slot", "project", "nth", "count", "probability"]) form.elements[name].disabled = state !== undefined;
    };
    form.elements.action.addEventListener("change", choose);
    choose();
  }
}
