// The dashboard: parts marked as live are refreshed every two seconds unless paused, the theme is kept, forms help to fill them in.
{
  const EVERY_MS = 2000;
  const root = document.documentElement;
  const news = document.getElementById("news");
  const pause = document.querySelector(".pause");
  let paused = false;

  const say = (text) => { if (news.textContent !== text) news.textContent = text; };

  const renew = (part, other) => {
    const [old, fresh] = [part, other].map((each) => [...each.querySelectorAll("figure.chart")]);
    if (!old.length || old.length !== fresh.length) part.replaceChildren(...other.childNodes);
    else old.forEach((figure, place) => {
      for (const what of ["script", "tbody"]) figure.querySelector(what).replaceWith(fresh[place].querySelector(what));
    });
    if (fresh.length) document.dispatchEvent(new Event("figures"));
  };

  const refresh = async () => {
    if (paused || document.hidden) return;
    try {
      const answer = await fetch("/", { signal: AbortSignal.timeout(10_000) });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live]")) {
        const other = fresh.getElementById(part.id);
        if (other && !part.contains(document.activeElement) && other.innerHTML !== part.innerHTML) renew(part, other);
      }
      say("");
    } catch (error) {
      say("The server does not answer: the figures are out of date.");
    }
  };

  if (pause) {
    pause.hidden = false;
    pause.addEventListener("click", () => {
      paused = !paused;
      pause.setAttribute("aria-pressed", String(paused));
      say(paused ? "Paused: the figures are not refreshed." : "");
      refresh();
    });
    (async () => {
      for (;;) {
        await new Promise((wake) => setTimeout(wake, EVERY_MS));
        await refresh();
      }
    })();
  }

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

  const kept = sessionStorage.getItem("theme");
  if (kept) {
    root.dataset.theme = kept;
    document.dispatchEvent(new Event("figures"));
  }
  new MutationObserver(() => {
    if (root.dataset.theme) sessionStorage.setItem("theme", root.dataset.theme);
    else sessionStorage.removeItem("theme");
  }).observe(root, { attributes: true, attributeFilter: ["data-theme"] });
}
