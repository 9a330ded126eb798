#!/usr/bin/env python3
"""What an operator asks of all hosts at once, and the way to another release.

    fleet.py status [--json]            a line a host; exit status 1 if anything is red
    fleet.py logs [SINCE] [--follow]    all hosts in one stream; SINCE as docker logs has it, such as 10m
    fleet.py history                    who deployed what
    fleet.py psql                       the database's shell
    fleet.py deploy VERSION [IMAGE]     ansible/deploy.yml
    fleet.py rollback [VERSION]         the last release that served before this one, or the given one

Runs in ansible/, through ansible.sh. The hosts are those of the inventory: ANSIBLE_INVENTORY, else inventory/static.yml
if it is there, else what ansible.cfg says.
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


def status(arguments):
    found, rows = hosts(), []
    for (name, _), ((out, err), code) in zip(found, ask(found, "status")):
        row = json.loads(out) if code == 0 else {"error": err.strip()}
        rows.append({"host": name} | row)
    versions = {r.get("version") for r in rows if "error" not in r}
    for r in rows:
        if "error" in r:
            r["red"] = ["cannot be asked"]
            continue
        since = lambda key: r[key] is not None and r["now"] - r[key]
        r["red"] = [what for what, red in {
            "not ready": not r["ready"], "hosts differ in version": len(versions) > 1, "switch not confirmed": not r["confirmed"],
            "certificate": r["certificate_days"] is not None and r["certificate_days"] < RED_DAYS, "disk": r["disk_percent"] > RED_PERCENT,
            "backup": since("backup") > RED_BACKUP, "drill": since("drill") > RED_DRILL}.items() if red]
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
        print("lock:", next((r["lock"] for r in rows if r.get("lock")), "free"))
    return any(r["red"] for r in rows)


def logs(arguments):
    found = hosts()
    wide = max(len(name) for name, _ in found)
    since = [a for a in arguments if a != "--follow"] or ["10m"]

    def copy(name, stream):
        for line in stream:
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
    (out, err), code = ask(found[:1], "history")[0]
    if code:
        sys.exit(f"fleet.py: {found[0][0]}: {err.strip()}")
    return [json.loads(line) for line in out.splitlines()]


def show(entries):
    now = datetime.datetime.now(datetime.timezone.utc)
    for e in entries:
        print(f"{age((now - datetime.datetime.fromisoformat(e['at'])).total_seconds()):>4} ago  {e['from'] or 'nothing'} -> {e['to']}  {e['result']}  "
              f"by {e['by']}", *(["without " + ", ".join(e["without"])] if e.get("without") else []), *(e.get("reason", "").splitlines()[:1]))


def history(_):
    show(audit(hosts()))


def psql(_):
    return start(hosts()[0][1].replace("ssh -T", "ssh -t" if sys.stdin.isatty() else "ssh -T"), "psql").wait()


def deploy(arguments):
    if not arguments or not arguments[0]:
        sys.exit("fleet.py: the version is not given, want a released one, such as 1.4.1")
    settings = dict(zip(("version", "app_image"), filter(None, arguments)))
    sys.stdout.flush()
    os.execvp("ansible-playbook", ["ansible-playbook", "deploy.yml", "-e", json.dumps(settings)])  # one process, let in once


def rollback(arguments):
    version = "".join(arguments)
    if not version:
        entries = audit(hosts())
        show(entries[-10:])
        good = [e["to"] for e in entries if e["result"] == "deployed"]
        version = next((v for v in reversed(good) if v != good[-1]), None)
        if not version:
            sys.exit("fleet.py: no release served before this one")
        print("going back to", version)
    return deploy([version])


if __name__ == "__main__":
    if os.path.exists("inventory/static.yml"):
        os.environ.setdefault("ANSIBLE_INVENTORY", "inventory/static.yml")
    verbs = {f.__name__: f for f in (status, logs, history, psql, deploy, rollback)}
    if len(sys.argv) < 2 or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    try:
        sys.exit(int(verbs[sys.argv[1]](sys.argv[2:]) or 0))
    except KeyboardInterrupt:
        sys.exit(130)
