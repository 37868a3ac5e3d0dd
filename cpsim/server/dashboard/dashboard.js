"use strict";
// Parts marked as live are refreshed every two seconds unless paused; a button changes the theme.
const EVERY_MS = 2000;
const news = document.getElementById("news");
const pause = document.querySelector(".pause");
let paused = false;

function say(text) {
  if (news.textContent !== text) news.textContent = text;
}

async function refresh() {
  if (paused || document.hidden) return;
  try {
    const answer = await fetch("/", { signal: AbortSignal.timeout(10_000) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-live]")) {
      const other = fresh.getElementById(part.id);
      if (other && !part.contains(document.activeElement) && other.innerHTML !== part.innerHTML) {
        part.replaceChildren(...other.childNodes);
      }
    }
    say("");
  } catch (error) {
    say("The server does not answer: the figures are out of date.");
  }
}

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

const theme = document.querySelector(".theme");
const kept = sessionStorage.getItem("theme");
if (kept) document.documentElement.dataset.theme = kept;
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  sessionStorage.setItem("theme", root.dataset.theme);
});
