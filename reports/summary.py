"""Project summary: slots, credits, and who holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.accounting import Figure, Table

if TYPE_CHECKING:
    from cpsim.accounting import Accounts
    from cpsim.accounting.blocks import Block

STATES = ["claimed", "discarded", "expired", "outstanding"]
TOTALS = ("credits", "period_credits", "machines", "users")


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
            {**{name: name for name in TOTALS}, "credits_without_owner": "waiting_credits"},
        ),
        Figure(
            "Slots by state",
            slots,
            "ranking",
            "project",
            STATES,
            "As they were at the end of the period.",
            {name: name for name in ("allocated", *STATES)},
        ),
        Figure(
            "Credits granted",
            frames.over_time()[["project", "start_at", "credits", "cumulative_credits"]],
            "area",
            "start_at",
            ["cumulative_credits"],
            sums={"credits": "period_credits"},
        ),
        Table(
            "What decided the credits",
            frames.rules,
            _about_rules(frames),
            {"slots": "period_claimed", "credits": "period_credits"},
        ),
        Table(
            "Time",
            spans[["project", "first_at", "last_at", "period_allocated", "period_claimed"]],
            sums={name: name for name in ("period_allocated", "period_claimed")},
        ),
    ]
    if projects["refused"].notna().any():
        blocks.append(Table("Commands refused", projects[["project", "refused"]], sums={"refused": "refused"}))
    return blocks


def _about_rules(frames: Accounts) -> str:
    if frames.has_claims:
        return "From the terms of the slots, and the credits that claims requested, if the journal has them."
    return "From the terms of the slots alone: without a journal, the credits that claims requested are unknown."
