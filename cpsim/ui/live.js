"use strict";
// A page with a button to pause is live: its parts are refreshed every two seconds from what the server shows.
{
  const EVERY_MS = 2000;
  const PARTS = "[data-live], .live > header, .live > section";
  const news = document.getElementById("news");
  const pause = document.querySelector(".pause");
  let paused = false;

  const say = (text) => { if (news.textContent !== text) news.textContent = text; };
  const renew = (part, other) => {  // charts stay, with what is zoomed or hidden in them, and so does what is unfolded
    const folds = [...part.querySelectorAll("details")];
    [...other.querySelectorAll("details")].forEach((each, place) => { if (folds[place]) each.open = folds[place].open; });
    const names = (figure) => JSON.stringify([figure.querySelector("figcaption").textContent,
      ...JSON.parse(figure.querySelector("script").textContent).series.map((series) => series.name)]);
    const charts = new Map([...part.querySelectorAll("figure.chart")].map((figure) => [names(figure), figure]));
    for (const fresh of other.querySelectorAll("figure.chart")) {
      const figure = charts.get(names(fresh));
      if (!figure) continue;
      for (const what of ["script", "tbody"]) figure.querySelector(what)?.replaceWith(fresh.querySelector(what));
      figure.querySelector(".note")?.remove();
      figure.querySelector("script").after(...fresh.querySelectorAll(".note"));
      fresh.replaceWith(figure);
    }
    part.replaceChildren(...other.childNodes);
  };

  const refresh = async () => {
    if (paused || document.hidden) return;
    try {
      const answer = await fetch("/", { signal: AbortSignal.timeout(30_000) });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll(PARTS)) {
        const other = fresh.getElementById(part.id);
        if (other && !part.contains(document.activeElement) && other.innerHTML !== part.innerHTML) renew(part, other);
      }
      document.dispatchEvent(new Event("figures"));
      say("");
    } catch (error) {
      say(news.dataset.gone || "The server does not answer: the figures are out of date.");
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
}
