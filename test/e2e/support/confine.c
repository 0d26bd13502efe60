// confine CALL... -- COMMAND...: runs COMMAND with these system calls and no other, the way systemd's SystemCallFilter= does it: the others fail with EPERM.
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **words) {
  scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
  if (filter == NULL) return 1;
  int i = 1;
  for (; i < count && strcmp(words[i], "--") != 0; i++) {
    int call = seccomp_syscall_resolve_name(words[i]);
    if (call == __NR_SCMP_ERROR) continue;  // systemd knows it, this libseccomp or this architecture doesn't
    if (seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 0) != 0) {
      fprintf(stderr, "confine: no rule for %s\n", words[i]);
      return 1;
    }
  }
  if (seccomp_load(filter) != 0) {
    fprintf(stderr, "confine: the filter can't be loaded\n");
    return 1;
  }
  execvp(words[i + 1], words + i + 1);
  perror("confine: exec");
  return 1;
}
