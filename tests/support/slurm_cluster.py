"""A Slurm of the test's own: a controller, three nodes and munge, as processes on this machine, without systemd."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ports import free_port

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "setpriv")
NODES = ("n1", "n2", "n3")
REQUIRED = "CPSIM_TEST_SLURM"
"""The environment variable by which a test run says that Slurm is to be there: `.ci/run` installs it."""
SETTINGS = """
ClusterName=cp
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=slurm
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=30
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/slurm
SlurmctldPidFile={folder}/slurm/pid
SlurmctldLogFile={folder}/slurm/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2
MailProg=/bin/true
MinJobAge=3600
KillWait=1
ReturnToService=2
PartitionName=lasting Nodes=n1,n2 Default=YES State=UP
PartitionName=failing Nodes=n3 State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 State=UNKNOWN\n"


def why_not():
    """Why there can be no Slurm here, or None."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"no {missing[0]}: RUNLEVEL=1 apt-get install slurmctld slurmd munge"
    return None if os.getuid() == 0 else "only root can start a Slurm whose users differ"


class Slurm:
    """Its configuration, its processes, and the commands of a user and of an operator."""

    def __init__(self, folder, hooks):
        self.folder = folder
        host = socket.gethostname().partition(".")[0]
        self.config = folder / "slurm.conf"
        text = SETTINGS.format(folder=folder, hooks=hooks, host=host, port=free_port())
        text += (hooks / "slurm.conf").read_text(encoding="utf-8").replace("/etc/slurm/creditpiggy", str(hooks))
        text += "".join(NODE.format(name=name, host=host, port=free_port()) for name in NODES)
        self.config.write_text(text, encoding="utf-8")
        self.environment = {"PATH": os.environ["PATH"], "SLURM_CONF": str(self.config)}
        self.nodes = {}
        self.controller = None

    def command(self, *command, user=None, script=None):
        """What a command of Slurm's prints."""
        as_user = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
        done = subprocess.run(
            [*map(str, command)],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
            input=script,
            **as_user,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def submit(self, script, *options):
        """The id of a job of somebody's, whose script is sh."""
        submit = ("sbatch", "--parsable", "--output=/dev/null", *options)
        return self.command(*submit, user="nobody", script=f"#!/bin/sh\n{script}\n")

    def start_node(self, name):
        """Start the slurmd of a node."""
        self.nodes[name] = self.start("slurmd", "-D", "-N", name)

    def kill_node(self, name):
        """Kill the slurmd of a node, and tell the controller that the node is down."""
        node = self.nodes.pop(name)
        node.kill()
        node.wait(100)
        self.command("scontrol", "update", f"nodename={name}", "state=down", "reason=test")

    def start(self, *command, user=None):
        """Start a daemon, which ends with the thread that has started it."""
        owner = ("--reuid", user, "--regid", user, "--clear-groups") if user else ()
        with (self.folder / "output").open("a") as output:
            return subprocess.Popen(
                ["setpriv", *owner, "--pdeathsig", "TERM", *map(str, command)],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @contextmanager
    def watching(self, *command):
        """The lines of a command that looks once a second."""
        looking = ("stdbuf", "-oL", *command, "--noheader", "--iterate=1")
        with (self.folder / "watched").open("a") as errors:
            process = subprocess.Popen(
                looking, env=self.environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
        try:
            yield map(self.checked, process.stdout)
        finally:
            process.kill()
            process.communicate()

    def checked(self, line):
        """The line, if all daemons are running that should be."""
        ended = [process.args for process in (self.controller, *self.nodes.values()) if process.poll() is not None]
        assert not ended, f"ended by themselves: {ended}"
        return line.strip()

    def wait_for_nodes(self):
        """Return when all nodes have registered."""
        with self.watching("sinfo", "--states=idle", "--format=%D") as lines:
            assert any(line == str(len(NODES)) for line in lines)

    def wait_for_jobs(self, states="pending,configuring,running,completing"):
        """Return when no job is in one of these states."""
        with self.watching("squeue", f"--states={states}", "--format=%i") as lines:
            was_blank = True
            for line in lines:  # a blank one ends each look
                if was_blank and not line:
                    return
                was_blank = not line
        raise AssertionError("squeue ended by itself")

    def show(self):
        """Print what the daemons have said last, for a test that fails."""
        print("", *(self.folder / "output").read_text("utf-8", "replace").splitlines()[-100:], sep="\n")

    def record(self):
        """What Slurm itself has noted of each job: fields by their names."""
        lines = self.command("scontrol", "--oneliner", "show", "job").splitlines()
        return [dict(field.split("=", 1) for field in line.split() if "=" in field) for line in lines]


def folder_of(path, user):
    """A folder that belongs to a user."""
    path.mkdir(mode=0o755)
    shutil.chown(path, user, user)
    return path


@contextmanager
def slurm(folder, hooks, wait_for):
    """A Slurm whose hooks are in a folder; at the end, no process of it is left."""
    cluster = Slurm(folder, hooks)
    munge = folder_of(folder / "munge", "munge")
    folder_of(folder / "slurm", "slurm")
    key = munge / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    shutil.chown(key, "munge", "munge")
    with ExitStack() as stack:
        stack.callback(cluster.show)
        stack.callback(kill_all_of, cluster.config)
        places = (f"--{name}-file={munge / name}" for name in ("pid", "log", "seed"))
        munged = ("munged", "--foreground", f"--key-file={key}", f"--socket={munge / 'socket'}", *places)
        stack.callback(end, cluster.start(*munged, user="munge"))
        wait_for((munge / "socket").exists)
        cluster.controller = cluster.start("slurmctld", "-D", user="slurm")
        stack.callback(end, cluster.controller)
        stack.callback(lambda: [end(node) for node in cluster.nodes.values()])
        for name in NODES:
            cluster.start_node(name)
        cluster.wait_for_nodes()
        yield cluster


def end(process):
    """End a daemon."""
    process.terminate()
    process.wait(100)


def kill_all_of(config):
    """Kill what a Slurm has left: jobs, and what runs them, know it by its configuration."""
    mark = f"SLURM_CONF={config}".encode()
    left = [None]
    while left:
        left = [process for process in Path("/proc").glob("[0-9]*") if mark in environment_of(process)]
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(int(process.name), signal.SIGKILL)


def environment_of(process):
    """The variables that a process was started with; none, if it has ended."""
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
