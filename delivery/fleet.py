#!/usr/bin/env python3
"""What an operator asks of all hosts at once, and the way to another release.

    fleet.py status [--json]            a line a host; exit status 1 if anything is red
    fleet.py logs [SINCE] [--follow] [--grep=REGEX]   all hosts in one stream; SINCE as docker logs has it, such as 10m
    fleet.py history                    who deployed what
    fleet.py psql                       the database's shell
    fleet.py ssh [HOST]                 a shell on a host; of the first one Prometheus and Alertmanager are on this machine's 9090 and 9093
    fleet.py forget                     removes what is kept of the visitor whose address is typed, or read from standard input
    fleet.py deploy VERSION [IMAGE]     ansible/deploy.yml
    fleet.py rollback [VERSION]         the last release that served before this one, or the given one

Runs in ansible/, through ansible.sh. The hosts are those of the inventory.
"""
import base64, datetime, json, os, re, shlex, subprocess, sys, threading

RED_DAYS, RED_PERCENT, RED_BACKUP, RED_DRILL = 10, 90, 26 * 3600, 8 * 86400  # as ansible/roles/monitoring/files/alerts.yml


def hosts():
    """The inventory's hosts in their order, each with the SSH command that Ansible would use."""
    words = "{{ (inventory_hostname ~ ' ' ~ (ssh_over == 'public' and 'ec2' in group_names and aws_region or '-') ~ ' ' ~ ssh_command) | b64encode }}"
    p = subprocess.run(["ansible", "footfall:ec2", "-m", "debug", "-a", "msg=" + words], capture_output=True, text=True)
    found = [base64.b64decode(m).decode().split(" ", 2) for m in re.findall(r'\bmsg\W+([A-Za-z0-9+/=]+)', p.stdout)]
    if not found:
        sys.exit("fleet.py: the inventory has no host:\n" + p.stdout + p.stderr)
    region = found[0][1]
    if region != "-" and subprocess.call([sys.executable, "tasks/let-in", str(os.getpid()), region]):
        sys.exit("fleet.py: the hosts do not let this machine in")
    found = [(name, ssh) for name, _, ssh in found]
    return sorted(found, key=lambda h: [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", h[0])])


def start(ssh, *command, **how):
    """Runs footfall-release on a host as root."""
    return subprocess.Popen(shlex.split(ssh) + ["sudo -n footfall-release " + shlex.join(command)], **how)


def ask(found, *command):
    """The answer of each host, or its error."""
    running = [start(ssh, *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _, ssh in found]
    return [(p.communicate(), p.returncode) for p in running]


def age(seconds):
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:.0f}s"


def endures(rows):
    """Behind a balancer: whether any one host may end at any time, and what is missing for that to be true."""
    missing = [f"{r['host']} is not ready" for r in rows if not r.get("ready")] + (["there is one host"] if len(rows) < 2 else [])
    named = [r for r in rows if r.get("certificate_days") is not None]
    missing += [f"{r['host']} has no certificate" for r in rows if named and r not in named]
    standby = [r["standby"] for r in rows if r.get("standby") is not None]
    missing += ["the managed database has no standby"] if standby and not all(standby) else []
    return "any host may end at any time: " + ("no, " + "; ".join(missing) if missing else "yes" if standby else "yes, if the database has a standby")


def status(arguments):
    found, rows = hosts(), []
    for (name, _), ((out, err), code) in zip(found, ask(found, "status")):
        row = json.loads(out) if code == 0 else {"error": err.strip()}
        rows.append({"host": name} | row)
    versions = {r.get("version") for r in rows if "error" not in r}
    databases = {r.get("database") for r in rows} - {None, ""}  # by the moment of its first migration
    for r in rows:
        if "error" in r:
            r["red"] = ["cannot be asked"]
            continue
        since = lambda key: r[key] is not None and r["now"] - r[key]
        r["red"] = [what for what, red in {
            "not ready": not r["ready"], "hosts differ in version": len(versions) > 1, "hosts count in different databases": len(databases) > 1, "switch not confirmed": not r["confirmed"],
            "certificate": r["certificate_days"] is not None and r["certificate_days"] < RED_DAYS, "disk": r["disk_percent"] > RED_PERCENT,
            "backup": since("backup") > RED_BACKUP, "drill": since("drill") > RED_DRILL,
            "the managed database has no standby": r.get("standby") == 0}.items() if red]
    if "--json" in arguments:
        print(json.dumps(rows, indent=2))
    else:
        table = [["host", "slot", "version", "ready", "up", "visits/s", "certificate", "disk", "backup", "drill", "red"]]
        for r in rows:
            if "error" in r:
                table.append([r["host"]] + ["-"] * 9 + ["; ".join(r["red"]) + ": " + r["error"].splitlines()[-1]])
                continue
            up = r["now"] - datetime.datetime.fromisoformat(r["since"]).timestamp()
            table.append([r["host"], r["slot"], r["version"], "yes" if r["ready"] else r["reason"], age(up), r["visits_per_second"],
                          "-" if r["certificate_days"] is None else f"{r['certificate_days']}d", f"{r['disk_percent']}%",
                          *("-" if r[k] is None else age(r["now"] - r[k]) for k in ("backup", "drill")), "; ".join(r["red"])])
        wide = [max(len(str(row[i])) for row in table) for i in range(len(table[0]))]
        for row in table:
            print("  ".join(str(cell).ljust(w) for cell, w in zip(row, wide)).rstrip())
        balanced = any(r.get("balanced") for r in rows)  # then every host has the lock, else the first one
        held = [r["lock"] for r in (rows if balanced else rows[:1]) if "error" not in r]
        print("lock:", next(filter(None, held), "free") if held else "unknown")
        if balanced:
            print(endures(rows))
        elif rows[0].get("standby") is not None:
            print(f"a lost host: the count is in {'two zones' if rows[0]['standby'] else 'one zone'}; {rows[0]['host']} still has the edge, the lock, the audit log and the monitoring")
    return any(r["red"] for r in rows)


def logs(arguments):
    found = hosts()
    wide = max(len(name) for name, _ in found)
    wanted = re.compile("".join(a.removeprefix("--grep=") for a in arguments if a.startswith("--grep=")), re.IGNORECASE)
    since = [a for a in arguments if not a.startswith("--")] or ["10m"]

    def copy(name, stream):
        for line in stream:
            if wanted.search(line):
                print(f"{name:{wide}}  {line}", end="", flush=True)

    running = [start(ssh, "logs", *since, *(a for a in arguments if a == "--follow"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
               for _, ssh in found]
    threads = [threading.Thread(target=copy, args=(name, p.stdout)) for (name, _), p in zip(found, running)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return any(p.wait() for p in running)


def audit(found):
    """The first host's log, and before it, if that host was made later than another, the longest one's."""
    answers = ask(found, "history")
    logs = [[json.loads(line) for line in out.splitlines()] for (out, _), _ in answers]
    if not any(logs):
        sys.exit(f"fleet.py: {found[0][0]}: {answers[0][0][1].strip()}")
    first = next(filter(None, logs))
    when = lambda entry: datetime.datetime.fromisoformat(entry["at"])
    begin = when(first[0]) - datetime.timedelta(minutes=1)  # each host notes the end of a deployment by its own clock
    return [entry for entry in max(logs, key=len) if when(entry) < begin] + first


def show(entries):
    now = datetime.datetime.now(datetime.timezone.utc)
    for e in entries:
        print(f"{age((now - datetime.datetime.fromisoformat(e['at'])).total_seconds()):>4} ago  {e['from'] or 'nothing'} -> {e['to']}  {e['result']}  "
              f"by {e['by']}", *(["without " + ", ".join(e["without"])] if e.get("without") else []), *(e.get("reason", "").splitlines()[:1]))


def history(_):
    show(audit(hosts()))


def terminal(ssh, *options):
    """The command that reaches a host, with a terminal there if there is one here."""
    return shlex.join(["ssh", "-t" if sys.stdin.isatty() else "-T", *options]) + ssh.removeprefix("ssh -T")


def psql(_):
    return start(terminal(hosts()[0][1]), "psql").wait()


def ssh(arguments):
    found = hosts()
    name = "".join(arguments) or found[0][0]
    if name not in dict(found):
        sys.exit(f"fleet.py: no host is named {name}; there are {', '.join(n for n, _ in found)}")
    # What listens on the first host's loopback alone.
    tunnels = [o for port in (9090, 9093) for o in ("-L", f"{port}:127.0.0.1:{port}")] if name == found[0][0] else []
    return subprocess.call(shlex.split(terminal(dict(found)[name], *tunnels)))


def forget(_):
    if sys.stdin.isatty():
        print("The visitor's address:", end=" ", flush=True)
    p = start(hosts()[0][1], "forget", stdin=subprocess.PIPE, text=True)
    p.communicate(sys.stdin.readline())
    return p.returncode


def deploy(arguments, **more):
    if not arguments or not arguments[0]:
        sys.exit("fleet.py: DEPLOY_VERSION is not set; set it to a release, such as DEPLOY_VERSION=1.4.1")
    settings = dict(zip(("version", "app_image"), filter(None, arguments))) | more
    sys.stdout.flush()
    os.execvp("ansible-playbook", ["ansible-playbook", "deploy.yml", "-e", json.dumps(settings)])  # one process, let in once


def rollback(arguments):
    version = "".join(arguments)
    if not version:
        found = hosts()
        entries = audit(found)
        show(entries[-10:])
        (out, err), code = ask(found[:1], "status")[0]
        if code:
            sys.exit(f"fleet.py: {found[0][0]}: {err.strip()}")
        running = json.loads(out)["version"]
        version = next((e["to"] for e in reversed(entries) if e["result"] == "deployed" and e["to"] != running), None)
        if not version:
            sys.exit("fleet.py: no release served before this one")
        print("going back from", running, "to", version)
    return deploy([version], back=True)


if __name__ == "__main__":
    verbs = {f.__name__: f for f in (status, logs, history, psql, ssh, forget, deploy, rollback)}
    if len(sys.argv) < 2 or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    try:
        sys.exit(int(verbs[sys.argv[1]](sys.argv[2:]) or 0))
    except KeyboardInterrupt:
        sys.exit(130)
