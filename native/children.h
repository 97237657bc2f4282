/*
 * The children of a ghost: those that it had as a process, and that have stayed. It tells how they fare,
 * and is no zombie's parent for longer than its body has not heard of it.
 */
#ifndef SSI_CHILDREN_H
#define SSI_CHILDREN_H

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/wait.h>

/* In the kernel's own /proc: that of the cluster has what children the body has. */
#define OWN_CHILDREN "/run/ssi/proc/thread-self/children"

enum { CONTINUED_STATUS = 0xffff, STOPPED_STATUS = 0x7f, DUMPED_STATUS = 0x80 };

/* As waitpid has it. */
static int wait_status_of(const siginfo_t *info)
{
	switch (info->si_code) {
	case CLD_EXITED:
		return (info->si_status & 0xff) << 8;
	case CLD_KILLED:
		return info->si_status;
	case CLD_DUMPED:
		return info->si_status | DUMPED_STATUS;
	case CLD_CONTINUED:
		return CONTINUED_STATUS;
	default:
		return info->si_status << 8 | STOPPED_STATUS;
	}
}

/* Tells of each child that has ended, stopped or gone on; none is taken note of for the kernel. */
static void look_at_children(void (*tell)(pid_t pid, int status))
{
	FILE *list = fopen(OWN_CHILDREN, "re");
	int pid;

	while (list && fscanf(list, "%d", &pid) == 1) {
		siginfo_t info = { .si_pid = 0 };

		if (!waitid(P_PID, (id_t)pid, &info,
			    WEXITED | WSTOPPED | WCONTINUED | WNOHANG | WNOWAIT) && info.si_pid)
			tell(pid, wait_status_of(&info));
	}
	if (list)
		(void)fclose(list);
}

/* The body has heard of the end of one, if `pid` is not 0; false if no child is left. */
static bool reap_child(pid_t pid)
{
	siginfo_t info;

	if (pid)
		(void)waitpid(pid, NULL, WNOHANG);
	return !waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) || errno != ECHILD;
}

#endif
