import dataclasses
import gzip

import numpy as np
import pytest

from cpsim.scenario import ScenarioError, load_workload


def line(job, submit, wait, run, status, *, user=1):
    return f" {job} {submit} {wait} {run} 4 -1 -1 4 -1 -1 {status} {user} -1 -1 -1 -1 -1 -1"


def write(tmp_path, *lines, end="\n"):
    path = tmp_path / "log.swf"
    path.write_bytes(end.join(lines).encode() + end.encode())
    return path


def calls(path, seed=1):
    workload = load_workload(path, seed)
    return [
        (due_us / 1e6, kind, {name: value for name, value in arguments.items() if name not in {"machine", "expire"}})
        for due_us, (kind, arguments) in zip(
            workload.due_us.tolist(), workload.calls(0, len(workload), "j"), strict=True
        )
    ]  # fmt: skip


def test_statuses(tmp_path):
    path = write(
        tmp_path, line(7, 100, 5, 10, 1), line(8, 200, -1, 20, 0), line(9, 300, 5, -1, 5), line(10, 400, -1, 30, 5)
    )
    assert calls(path) == [
        (0, "alloc", {"slot": "j-7"}),
        (15, "counters", {"slot": "j-7", "job/cpuusage": 10, "job/success": 1}),
        (15, "claim", {"slot": "j-7", "credits": 1}),
        (100, "alloc", {"slot": "j-8"}),
        (120, "counters", {"slot": "j-8", "job/cpuusage": 20, "job/failure": 1}),
        (120, "discard", {"slot": "j-8", "reason": "failed"}),
        (200, "alloc", {"slot": "j-9"}),
        (205, "discard", {"slot": "j-9", "reason": "cancelled"}),
        (300, "alloc", {"slot": "j-10"}),
        (330, "counters", {"slot": "j-10", "job/cpuusage": 30}),
        (330, "discard", {"slot": "j-10", "reason": "cancelled"}),
    ]


def test_unknown_status_counts_as_completed(tmp_path):
    assert [kind for _, kind, _ in calls(write(tmp_path, line(1, 0, 0, 5, -1)))] == ["alloc", "counters", "claim"]


def test_parts_of_a_job_are_one_slot(tmp_path):
    path = write(tmp_path, line(3, 0, 1, 10, 2), line(3, -1, 9, 20, 2), line(3, -1, 0, 5, 3), line(4, 0, 0, 100, 2))
    assert calls(path) == [
        (0, "alloc", {"slot": "j-3"}),
        (0, "alloc", {"slot": "j-4"}),
        (11, "counters", {"slot": "j-3", "job/cpuusage": 10}),
        (40, "counters", {"slot": "j-3", "job/cpuusage": 20}),
        (45, "counters", {"slot": "j-3", "job/cpuusage": 5, "job/success": 1}),
        (45, "claim", {"slot": "j-3", "credits": 1}),
        (100, "counters", {"slot": "j-4", "job/cpuusage": 100}),
    ]


def test_a_summary_line_replaces_its_parts(tmp_path):
    path = write(tmp_path, line(3, 0, 0, 30, 0), line(3, -1, 9, 20, 2), line(3, -1, 0, 5, 4))
    assert [kind for _, kind, _ in calls(path)] == ["alloc", "counters", "discard"]


def test_repeated_job_numbers_are_separate_slots(tmp_path):
    workload = load_workload(write(tmp_path, *[line(5, t, 0, 1, 1) for t in (0, 1, 2)], line(9, 3, 0, 1, 1)))
    assert workload.slot_numbers.tolist() == [5, 10, 11, 9]


def test_oddities_of_real_logs(tmp_path):
    lines = [
        "; Version: 2.2", ";\tMaxNodes: 12 (of 16)", "; caf\u00e9 ; 1 2 3", "",
        line(2, 20.5, 0, 1.75, 1), "   ; indented comment", line(1, 10, 0.25, 0, 1) + " ; trailing", "   ",
    ]  # fmt: skip
    path = write(tmp_path, *lines, end="\r\n")
    expected = [
        (0, "alloc", {"slot": "j-1"}),
        (0.25, "claim", {"slot": "j-1", "credits": 1}),
        (10.5, "alloc", {"slot": "j-2"}),
        (12.25, "counters", {"slot": "j-2", "job/cpuusage": 1, "job/success": 1}),
        (12.25, "claim", {"slot": "j-2", "credits": 1}),
    ]
    assert calls(path) == expected
    assert len(load_workload(path).machines) == 12
    zipped = tmp_path / "my log.swf.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert calls(zipped) == expected
    assert load_workload(zipped).name == "my-log"


def test_slots_outlive_their_jobs_by_a_day(tmp_path):
    workload = load_workload(write(tmp_path, line(1, 0, 0, 61, 1), line(2, 0, 0, 0, 5), line(3, 0, 60, 60, 1)))
    assert workload.arguments["alloc"]["expire"].values.tolist() == [1442, 1440, 1442]


def test_jobs_run_on_machines_of_their_user(tmp_path):
    users = [3, 3, -1, 8, 15, 8] * 50
    path = write(tmp_path, "; MaxNodes: 10", *[line(i, i, 0, 1, 1, user=user) for i, user in enumerate(users)])
    workload = load_workload(path)
    assert len(workload.users) == 3
    assert np.bincount(workload.owner + 1).tolist() == [3, 3, 2, 2]
    owners = workload.owner[workload.arguments["claim"]["machine"].values]
    slots = workload.slot[workload.kind == 4]
    expected = {-1: -1, 3: 0, 8: 1, 15: 2}
    assert owners.tolist() == [expected[users[slot]] for slot in slots]
    assert len(np.unique(workload.arguments["claim"]["machine"].values)) == 10


def test_more_users_than_nodes(tmp_path):
    workload = load_workload(write(tmp_path, "; MaxNodes: 1", *[line(i, 0, 0, 1, 1, user=i) for i in range(5)]))
    assert workload.owner.tolist() == [0, 1, 2, 3, 4]


def test_the_seed_decides(tmp_path):
    path = write(tmp_path, *[line(i, i, 0, 1, 1) for i in range(20)])
    assert load_workload(path).digest() == load_workload(path, 1).digest()
    assert load_workload(path, 2).digest() != load_workload(path, 1).digest()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line(1, "x", 0, 1, 1), r"line 3: submit time \(field 2\) = 'x': expected seconds from 0"),
        (
            line(1, 0, 0, 1, 1, user="bob"),
            r"line 3: user \(field 12\) = 'bob': expected a whole number from 0 up, or -1",
        ),
        (line(1, 0, 0, 1, 7), r"line 3: status \(field 11\) = 7: expected a whole number from -1 to 5"),
        (line(1, 0, 0, 1, 1.5), r"line 3: status \(field 11\) = 1.5"),
        (line(1, -1, 0, 1, 1), r"line 3: submit time \(field 2\) = -1: expected seconds"),
        (line(1, -1, 0, 1, 3), r"line 3: submit time \(field 2\) = -1: expected a time on the first part"),
        (line(1, 0, 0, 1e300, 1), r"line 3: run time \(field 4\) = 1e\+300"),
        (line(1, 0, "nan", 1, 1), r"line 3: wait time \(field 3\) = nan"),
        (line(-4, 0, 0, 1, 1), r"line 3: job number \(field 1\) = -4"),
        ("1 2 3", "line 3: 3 fields: expected 18, from job number to think time"),
        (line(1, 0, 0, 1, 1).replace(" ", "\r", 1), r"line 3: '\\r' is in the middle of the line"),
        (line(1, 0, 0, "1x", 1), r"line 3: run time \(field 4\) = '1x': expected seconds from 0 to 1e11, or -1"),
    ],
)
def test_a_bad_line_is_located(tmp_path, bad, message):
    path = write(tmp_path, "; comment", line(5, 0, 0, 1, 1), bad, line(6, 0, 0, 1, 1))
    with pytest.raises(ScenarioError, match=f"log.swf, {message}"):
        load_workload(path)


def test_a_log_of_one_width_that_is_wrong(tmp_path):
    with pytest.raises(ScenarioError, match="line 1: 2 fields"):
        load_workload(write(tmp_path, "1 2", "3 4"))


@pytest.mark.parametrize("lines", [(), ("; only", "; comments")])
def test_an_empty_log(tmp_path, lines):
    with pytest.raises(ScenarioError, match="no job in this log"):
        load_workload(write(tmp_path, *lines))


@pytest.mark.thorough
def test_a_small_file_that_holds_endless_padding_is_refused(tmp_path):
    path = tmp_path / "log.swf.gz"
    path.write_bytes(gzip.compress(bytes(2**26)) * 9)
    with pytest.raises(ScenarioError, match=r"log.swf.gz: over 512 MiB when it is decompressed"):
        load_workload(path)


def test_damaged_gzip(tmp_path):
    path = tmp_path / "log.swf.gz"
    whole = gzip.compress(line(1, 0, 0, 1, 1).encode())
    for content in (whole[:-9], b"plain text", whole[:12] + b"\xff" * 20):
        path.write_bytes(content)
        with pytest.raises(ScenarioError, match=r"log.swf.gz: damaged or cut short"):
            load_workload(path)


@pytest.mark.parametrize("name", ["LOG.SWF", "log.swf", "LOG.SWF.GZ"])
def test_a_compressed_log_is_known_by_its_content(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"1 0 5 60 1 -1 -1 1 -1 -1 1 1 1 1 1 1 -1 -1\n"))
    assert len(load_workload(path).slot_numbers) == 1


# A mapping of one's own


def mapped(tmp_path, mapping, *lines):
    write(tmp_path, *lines)
    path = tmp_path / "mapped.toml"
    path.write_text(f'description = "x"\n[log]\nfile = "log.swf"\n{mapping}\n', encoding="utf-8")
    return path


EACH = (line(1, 0, 0, 10, 1), line(2, 0, 0, 20, 0), line(3, 0, 0, 30, 5), line(4, 0, 0, 40, -1))


def settled(path):
    return {
        arguments["slot"]: arguments.get("reason", kind)
        for _, kind, arguments in calls(path)
        if kind in {"claim", "discard"}
    }


def test_a_mapping_that_says_nothing_changes_nothing_but_the_name(tmp_path):
    path = mapped(tmp_path, "", *EACH)
    plain = dataclasses.replace(load_workload(tmp_path / "log.swf", 1), name="mapped")
    assert load_workload(path, 1).digest() == plain.digest()


def test_statuses_become_what_the_mapping_says(tmp_path):
    path = mapped(tmp_path, 'outcome = { failed = "claim", cancelled = "never", unknown = "no idea" }', *EACH)
    assert settled(path) == {"j-1": "claim", "j-2": "claim", "j-4": "no idea"}
    assert settled(mapped(tmp_path, "", *EACH)) == {"j-1": "claim", "j-2": "failed", "j-3": "cancelled", "j-4": "claim"}


def test_run_times_are_scaled_and_paid_for(tmp_path):
    path = mapped(tmp_path, 'run_time_scale = 2.5\ncredits = { model = "run_time" }', *EACH)
    found = calls(path)
    assert [(time_s, arguments["credits"]) for time_s, kind, arguments in found if kind == "claim"] == [
        (25, 25),
        (100, 100),
    ]
    assert {arguments["job/cpuusage"] for _, kind, arguments in found if kind == "counters"} == {25, 50, 75, 100}


def test_jobs_run_on_any_machine(tmp_path):
    lines = [line(job, 0, 0, 5, 1, user=job % 2) for job in range(1, 401)]
    owners = {}
    for machine in ("own", "any"):
        workload = load_workload(mapped(tmp_path, f'machines = 10\nmachine = "{machine}"', *lines))
        assert len(workload.machines) == 10
        user_of_job = workload.slot_numbers[workload.slot[workload.kind == 4]] % 2
        owners[machine] = np.mean(workload.owner[workload.arguments["claim"]["machine"].values] == user_of_job)
    assert owners["own"] == 1
    assert 0.4 < owners["any"] < 0.6


def test_a_field_of_the_log_says_which_project_a_job_is_of(tmp_path):
    lines = [line(1, 0, 0, 5, 1, user=3), line(2, 0, 0, 5, 1, user=-1), line(3, 0, 0, 5, 1, user=3)]
    workload = load_workload(mapped(tmp_path, 'projects = "user"', *lines))
    assert workload.projects == ("user-unknown", "user-3")
    assert [workload.of_project(project)[0].slot_numbers.tolist() for project in workload.projects] == [[2], [1, 3]]
    assert load_workload(mapped(tmp_path, 'projects = "queue"', *lines)).sites == ()


def test_a_log_is_beside_the_file_that_names_it(tmp_path):
    mapped(tmp_path, "credits = 7", *EACH)
    (tmp_path / "below").mkdir()
    above = tmp_path / "below" / "above.toml"
    above.write_text('extends = "../mapped.toml"\nlog.machine = "any"\nverdict = "unknown"\n', encoding="utf-8")
    workload = load_workload(above, None, ["log.machines=3"])
    assert (workload.name, len(workload.machines), set(workload.arguments["claim"]["credits"].values.tolist())) == (
        "above",
        3,
        {7},
    )


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        ('outcome = { done = "claim" }', "log.outcome"),
        ('outcome = { failed = "a,b" }', "log.outcome.failed"),
        ("run_time_scale = 0", "log.run_time_scale = 0"),
        ("run_time_scale = 1e9\n", "run_time_scale = 1e+09 makes run times longer"),
        ('machine = "mine"', 'log.machine = "mine": expected "own", "any" or "node"'),
        (
            'projects = "day"',
            'log.projects = "day": expected "user", "group", "account", "executable", "queue" or "part',
        ),
        (
            'outcome = { done = "claim" }',
            'log.outcome.done: unusable key: expected "completed", "failed", "cancelled" or',
        ),
        ('projects = "user"', 'projects = "user": the log has 150 of them, and 100 can be'),
        ("speed = 3", "log.speed: unknown key"),
    ],
)
def test_mistakes_in_a_mapping_are_told(tmp_path, mapping, told):
    lines = [line(job, 0, 0, 1_000, 1, user=job) for job in range(1, 151)]
    with pytest.raises(ScenarioError) as raised:
        load_workload(mapped(tmp_path, mapping, *lines))
    assert told in str(raised.value)


def test_a_log_that_is_not_there_is_named(tmp_path):
    path = mapped(tmp_path, "", *EACH)
    (tmp_path / "log.swf").unlink()
    with pytest.raises(FileNotFoundError, match=r"log\.swf"):
        load_workload(path)


def test_what_the_fields_that_do_not_count_hold_does_not_matter(tmp_path):
    plain = load_workload(write(tmp_path, line(1, 0, 5, 60, 1), line(2, 10, 5, 60, 0)))
    lines = [line(1, 0, 5, 60, 1) + " 19 more", line(2, 10, 5, 60, 0).replace("4 -1 -1 4", "four NaN ? <4>")]
    odd = write(tmp_path, *[text.replace(" ", "\t") for text in lines], end="\r\n")
    odd.write_bytes(b"\xef\xbb\xbf" + odd.read_bytes())
    assert load_workload(odd).digest() == plain.digest()


def test_a_log_is_known_by_its_content_whatever_its_name(tmp_path):
    path = write(tmp_path, "; MaxNodes: 4", line(1, 0, 5, 60, 1))
    other = path.rename(tmp_path / "log.txt")
    assert len(load_workload(other).machines) == 4


def test_projects_may_be_texts(tmp_path):
    lines = [line(job, 0, 0, 5, 1).replace("1 -1 -1 -1 -1 -1 -1", f"1 -1 -1 {queue} -1 -1 -1") for job, queue in
             ((1, "long"), (2, "9"), (3, "10"), (4, "-1"))]  # fmt: skip
    workload = load_workload(mapped(tmp_path, 'projects = "queue"', *lines))
    assert workload.projects == ("queue-unknown", "queue-9", "queue-10", "queue-long")


@pytest.mark.parametrize(
    ("lines", "settings", "told"),
    [
        (["; MaxRecords: 9"], (), "its header says 9 records, and there are 3"),
        (["; MaxJobs: 9"], (), "its header says 9 jobs, and there are 3"),
        ([], (), "it does not say how many machines there are: 1,000; see machines in [log]"),
        (["; MaxNodes: 1"], (), "MaxNodes is 1, and 3 were made: one for each of its users, so that each has one"),
        ([], ["log.machines=2"], "machines = 2, and 3 were made: one for each of its users, so that each has one"),
        ([line(1, 5, 0, 1, 1)], (), "1 jobs repeat the number of an earlier one: they got the numbers from 4 on"),
        ([line(9, 5, 0, 1, 2)], (), "1 jobs have not ended in this log, and never settle"),
        (
            [line(9, 5, 0, 1, -1)], (),
            "1 ends of jobs that are not known are taken as completed: see outcome.unknown in [log]",
        ),
        ([line(9, 5, 0, 1, -1)], (), "1 jobs have the status -1, not known"),
        (["bad", "1 2 3"], ["log.skip_bad=2"], "2 bad rows were skipped; the first: {path}, line 1: 1 fields: exp"),
        ([line(9, -1, 0, 1, 3)], ["log.skip_bad=1"], "1 bad rows were skipped; the first: {path}, line 1: submit time"),
        ([line(9, 5, 0, 1, 8)], ["log.skip_bad=1"], "1 bad rows were skipped; the first: {path}, line 1: status"),
    ],
)  # fmt: skip
def test_what_is_odd_is_told(tmp_path, lines, settings, told):
    path = write(tmp_path, *lines, *[line(job, job, 0, 5, 1, user=job) for job in (1, 2, 3)])
    notes = load_workload(path, settings=settings).notes
    assert any(note.startswith(told.format(path=path)) for note in notes), notes


def test_what_is_not_odd_is_not_told(tmp_path):
    head = ("; MaxNodes: 3", "; MaxRecords: 3", "; MaxJobs: 3")
    assert load_workload(write(tmp_path, *head, *[line(job, job, 0, 5, 1, user=job) for job in (1, 2, 3)])).notes == ()


def test_a_part_of_a_log_by_time_needs_to_know_when_it_begins(tmp_path):
    jobs = [line(job, 100 * job, 0, 5, 1) for job in (1, 2, 3)]
    path = write(tmp_path, *jobs)
    assert load_workload(path, settings=['log.since="100s"']).slot_numbers.tolist() == [2, 3]
    with pytest.raises(ScenarioError, match=r"since = .* this log does not say when it begins .no UnixStartTime."):
        load_workload(path, settings=['log.since="2026-03-01T12:00:00"'])
    path = write(tmp_path, "; UnixStartTime: 1772366400", *jobs)
    made = load_workload(path, settings=['log.since="2026-03-01T12:03:20"', 'log.until="2026-03-01T12:05:00"'])
    assert (made.slot_numbers.tolist(), made.due_us.tolist()[0]) == ([2], 0)


def test_settings_of_a_log_alone_are_of_its_table(tmp_path):
    path = write(tmp_path, line(1, 0, 0, 5, 1))
    assert load_workload(path, settings=["log.credits=7"]).arguments["claim"]["credits"].values.tolist() == [7]
    with pytest.raises(ScenarioError, match=r"--set of a job log is of a key of \[log\], such as log.machines=50"):
        load_workload(path, settings=["population.machines=5"])
    with pytest.raises(ScenarioError, match=r'log.projects = "day": expected "user", "group", "account", .* or "part'):
        load_workload(path, settings=["log.projects=day"])
