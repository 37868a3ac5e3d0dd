"""Project summary: slots, credits, and who holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.accounting import Figure, Table

if TYPE_CHECKING:
    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block

STATES = ["claimed", "discarded", "expired", "outstanding"]


def build(frames: Accounts) -> list[Block]:
    """One row a project, and where its credits come from."""
    projects = frames.projects
    spans = projects.assign(first_at=frames.when(projects["first_us"]), last_at=frames.when(projects["last_us"]))
    slots = projects[["project", "allocated", *STATES]]
    credit = spans[
        ["project", "credits", "period_credits", "waiting_credits", "recent_credits_a_day", "machines", "users"]
    ].rename(columns={"waiting_credits": "credits_without_owner"})
    blocks: list[Block] = [
        Table(
            "Projects",
            credit,
            "Credits without owner wait on machines that no user is linked to, and are among the credits. The recent "
            "average is BOINC's: credits a day, of which what is a week old counts half.",
        ),
        Figure("Slots by state", slots, "ranking", "project", STATES, "As they were at the end of the period."),
        Figure(
            "Credits granted",
            frames.over_time()[["project", "start_at", "credits", "cumulative_credits"]],
            "area",
            "start_at",
            ["cumulative_credits"],
        ),
        Table("What decided the credits", frames.rules, _about_rules(frames)),
        Table("Time", spans[["project", "first_at", "last_at", "period_allocated", "period_claimed"]]),
    ]
    if projects["refused"].notna().any():
        blocks.append(Table("Commands refused", projects[["project", "refused"]]))
    return blocks


def _about_rules(frames: Accounts) -> str:
    if frames.has_claims:
        return "From the terms of the slots, and what claims asked for."
    return "From the terms of the slots alone: without a journal, nothing says what claims asked for."
