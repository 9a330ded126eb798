#!/usr/bin/python3
DOCUMENTATION = """
module: files
short_description: Directories, files and links of a host, all in one round trip
description:
  - M(ansible.builtin.copy) takes two round trips for each of them.
  - They are made in the order of the list, with the directories above them. A file's content is replaced at once, and never
    readable by more accounts than its mode says. C(--check) and C(--diff) work.
  - Returns RV(written), the paths that changed. A handler looks into it with C(when).
options:
  files:
    description: What must be there. An item without O(files[].content) and O(files[].link) is a directory.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Where it is., type: path, required: true}
      content: {description: What a file holds., type: str}
      link: {description: Where a link points., type: str}
      owner: {description: A name or a number., type: str, default: root}
      group: {description: A name or a number., type: str, default: root}
      mode: {description: C(0755) for a directory and C(0644) for a file unless given., type: str}
      validate: {description: A command that must succeed with the new content in the place of C(%s)., type: str}
      when: {description: False leaves it as it is., type: bool, default: true}
"""
EXAMPLES = """
- name: Configure sshd
  files:
    files:
      - { path: /etc/footfall/app, owner: "65532", mode: "0500" }
      - { path: /etc/nginx/nginx.conf, link: nginx-http.conf }
      - path: /etc/ssh/sshd_config.d/10-footfall.conf
        content: "PasswordAuthentication no\\n"
        validate: sshd -t -f %s
"""

import grp
import os
import pwd
import shlex
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule

ITEM = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str"},
    "link": {"type": "str"},
    "owner": {"type": "str", "default": "root"},
    "group": {"type": "str", "default": "root"},
    "mode": {"type": "str"},
    "validate": {"type": "str"},
    "when": {"type": "bool", "default": True},
}


def number(name, look):
    return int(name) if name.isdigit() else look(name)[2]


def is_as(path, kind, item):
    """Whether there is something of this kind, mode and owner; a link is not followed."""
    try:
        found = os.lstat(path)
        return (kind(found.st_mode) and stat.S_IMODE(found.st_mode) == int(item["mode"], 8)
                and found.st_uid == number(item["owner"], pwd.getpwnam) and found.st_gid == number(item["group"], grp.getgrnam))
    except (FileNotFoundError, KeyError):  # KeyError: an account that the check of a first run does not have yet
        return False


def give(path, item):
    os.chown(path, number(item["owner"], pwd.getpwnam), number(item["group"], grp.getgrnam), follow_symlinks=False)
    os.chmod(path, int(item["mode"], 8))


def read(path):
    """What a file holds, where a link leads, nothing if there is neither."""
    if os.path.islink(path):
        return os.readlink(path)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError):
        return ""


def write(module, item):
    """Puts a file or a link in the place of what is there."""
    folder = os.path.dirname(item["path"])
    os.makedirs(folder, 0o755, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".files-", dir=folder) as beside:
        new = os.path.join(beside, os.path.basename(item["path"]))
        if item["link"] is not None:
            os.symlink(item["link"], new)
        else:
            with open(new, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(item["content"])
            give(new, item)
        if item["validate"]:
            status, out, err = module.run_command(shlex.split(item["validate"] % new))
            if status:
                module.fail_json(msg=f"{item['path']} stays as it was, {item['validate']}: {err.strip() or out.strip()}")
        os.replace(new, item["path"])


def ensure(module, item):
    """Makes one item so and returns whether it had to."""
    path = item["path"]
    if item["link"] is not None:
        right = os.path.islink(path) and read(path) == item["link"]
    elif item["content"] is not None:
        item["mode"] = item["mode"] or "0644"
        right = is_as(path, stat.S_ISREG, item) and read(path) == item["content"]
    else:
        item["mode"] = item["mode"] or "0755"
        right = is_as(path, stat.S_ISDIR, item)
    if right or module.check_mode:
        return not right
    if item["link"] is not None or item["content"] is not None:
        write(module, item)
    else:
        os.makedirs(path, 0o755, exist_ok=True)
        give(path, item)
    return True


def main():
    module = AnsibleModule({"files": {"type": "list", "elements": "dict", "required": True, "options": ITEM}}, supports_check_mode=True)
    written, differences = [], []
    for item in module.params["files"]:
        if not item["when"]:
            continue
        before = read(item["path"])
        try:
            changed = ensure(module, item)
        except (OSError, KeyError) as e:
            module.fail_json(msg=f"write {item['path']}: {e}", written=written, changed=bool(written))
        if changed:
            written.append(item["path"])
            says = f"{item['owner']}:{item['group']} {item['mode'] or 'link'}"
            differences.append({
                "before_header": item["path"], "after_header": f"{item['path']}, {says}",
                "before": before, "after": item["content"] if item["link"] is None else item["link"],
            })
    module.exit_json(changed=bool(written), written=written, diff=differences)


if __name__ == "__main__":
    main()
