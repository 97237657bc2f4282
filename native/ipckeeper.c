/*
 * ipckeeper SOCKET: what processes of other nodes do to this node's System V IPC objects.
 *
 * The daemon orders, in the name of a caller, and this process makes the system call with his IDs. What
 * may take for ever is done by a child, a worker. Who uses SEM_UNDO has a holder here: a child whose
 * undo it is, and whose end makes the kernel do that. The daemon may be killed: this process keeps
 * what came of an order until that has arrived. After an order the object goes along with the
 * answer, so that it can be made anew on another node when this one is dead. Runs as root.
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/ipc.h>
#include <linux/msg.h>
#include <linux/sem.h>
#include <linux/shm.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "ipckeeper.h"
#include "keeper.h"

enum {
	MAX_DATA = 64 * 1024,
	MAX_PACKET = sizeof(struct ipc_order) + MAX_DATA,
	MAX_KEPT = 48 * 1024,	/* a snapshot */
	MAX_REMEMBERED = 64,	/* answers for one owner that nobody says have arrived */
	MAX_SEMAPHORES = 4000,
	GET_UNDO = 21,		/* image/kernel/patches/sem-undo-sums.patch */
	AGAIN_MS = 20,
	SETTLE_MS = 200,
};

static const uint32_t VOID = UINT32_MAX;	/* count of a snapshot: too large to be kept */

struct packet {
	struct ipc_order order;
	unsigned char data[MAX_DATA];	/* groups, and what the order has */
};

/* What a worker says: first who it is, and then what came of it. */
struct word {
	int64_t result;
	int32_t pid;
	uint32_t over;
};

struct outcome {
	struct word word;
	unsigned char data[MAX_DATA];
};

struct adjustment {
	struct adjustment *next;
	int id;
	uint32_t count;
	int32_t values[];
};

struct holder {
	struct holder *next;
	uint32_t owner, pid;
	pid_t process;
	int line;
	struct adjustment *adjustments;
};

struct task {
	struct task *next;
	struct ipc_order order;
	bool done, told, cancelled;
	int line;		/* to its worker; -1 */
	pid_t worker;
	int64_t result;
	unsigned char *out;
	size_t out_length;
	size_t length;
	unsigned char data[];
};

static struct task *tasks;	/* the oldest first */
static struct holder *holders;
static uint64_t version;
static unsigned char kept[MAX_KEPT];
static struct outcome outcome;

/* -- the system calls --------------------------------------------------------------------------- */

static uint32_t kind_of(uint32_t call)
{
	switch (call) {
	case IPC_MSGGET:
	case IPC_MSGSND:
	case IPC_MSGRCV:
	case IPC_MSGCTL:
		return IPC_QUEUE;
	case IPC_SHMGET:
	case IPC_SHMCTL:
		return IPC_MEMORY;
	default:
		return IPC_SEMAPHORES;
	}
}

static bool is_get(uint32_t call)
{
	return call == IPC_SEMGET || call == IPC_MSGGET || call == IPC_SHMGET;
}

static int64_t failing(long result)
{
	return result < 0 ? -errno : result;
}

/* The saved user ID stays root's: no user can signal who does something in his name. */
static bool become(const struct ipc_order *order, const unsigned char *data)
{
	gid_t groups[NGROUPS_MAX > 1024 ? 1024 : NGROUPS_MAX];

	if (order->groups > sizeof(groups) / sizeof(groups[0]))
		return false;
	memcpy(groups, data, order->groups * sizeof(groups[0]));
	return !setgroups(order->groups, groups) && !setresgid((gid_t)-1, order->gid, (gid_t)-1) &&
	       !setresuid((uid_t)-1, order->uid, (uid_t)-1);
}

static void become_root(void)
{
	if (setresuid((uid_t)-1, 0, (uid_t)-1) || setresgid((gid_t)-1, 0, (gid_t)-1) || setgroups(0, NULL))
		abort();
}

static int64_t do_semop(const struct ipc_order *order, const void *data, size_t length, bool wait)
{
	const struct timespec now = { 0 };
	const struct timespec most = {
		.tv_sec = order->words[0] / 1000000000,
		.tv_nsec = order->words[0] % 1000000000,
	};
	const struct timespec *timeout = !wait ? &now : order->words[0] < 0 ? NULL : &most;

	return failing(syscall(SYS_semtimedop, order->object, data, length / sizeof(struct sembuf), timeout));
}

static int64_t do_msgsnd(const struct ipc_order *order, const void *data, size_t length, bool wait)
{
	static struct {
		long type;
		unsigned char text[MAX_DATA];
	} message;

	message.type = (long)order->words[0];
	memcpy(message.text, data, length);
	return failing(syscall(SYS_msgsnd, order->object, &message, length,
			       (int)order->words[1] | (wait ? 0 : IPC_NOWAIT)));
}

static int64_t do_msgrcv(const struct ipc_order *order, bool wait)
{
	const int64_t got = failing(syscall(SYS_msgrcv, order->object, outcome.data, (size_t)order->words[0],
					    (long)order->words[1], (int)order->words[2] | (wait ? 0 : IPC_NOWAIT)));

	return got;
}

static size_t count_semaphores(int id)
{
	struct semid64_ds about = { 0 };

	return syscall(SYS_semctl, id, 0, IPC_STAT, &about) ? 0 : about.sem_nsems;
}

/* What a command's pointer leads to is in outcome.data: it has room for all. */
static int64_t do_control(const struct ipc_order *order, const void *data, size_t length)
{
	const int command = (int)order->words[1];
	void *there = outcome.data;

	memcpy(outcome.data, data, length);
	switch (order->call) {
	case IPC_MSGCTL:
		return failing(syscall(SYS_msgctl, order->object, command, there));
	case IPC_SHMCTL:
		return failing(syscall(SYS_shmctl, order->object, command, there));
	default:
		if (command == SETVAL)
			there = (void *)(uintptr_t)order->words[2];
		return failing(syscall(SYS_semctl, order->object, (int)order->words[0], command, there));
	}
}

static size_t size_of_answer(const struct ipc_order *order, int64_t result)
{
	const int command = (int)order->words[1];

	if (result < 0)
		return 0;
	if (order->call == IPC_MSGRCV)
		return sizeof(long) + (size_t)result;
	if (order->call == IPC_MSGCTL && command == IPC_STAT)
		return sizeof(struct msqid64_ds);
	if (order->call == IPC_SHMCTL && command == IPC_STAT)
		return sizeof(struct shmid64_ds);
	if (order->call == IPC_SEMCTL && command == IPC_STAT)
		return sizeof(struct semid64_ds);
	if (order->call == IPC_SEMCTL && command == GETALL)
		return count_semaphores(order->object) * sizeof(uint16_t);
	return 0;
}

/* Does it with the caller's IDs; returns its result, or a negative errno, with data in `outcome`. */
static int64_t perform(const struct ipc_order *order, const unsigned char *data, size_t length, bool wait)
{
	const size_t before = order->groups * sizeof(gid_t);
	const int flags = (int)order->words[2];
	const key_t key = (key_t)order->words[0];
	int64_t result = -EPERM;

	if (length < before)
		return -EINVAL;
	if (become(order, data)) {
		data += before;
		length -= before;
		switch (order->call) {
		case IPC_SEMGET:
			result = failing(syscall(SYS_semget, key, (int)order->words[1], flags));
			break;
		case IPC_MSGGET:
			result = failing(syscall(SYS_msgget, key, flags));
			break;
		case IPC_SHMGET:
			result = failing(syscall(SYS_shmget, key, (size_t)order->words[1], flags));
			break;
		case IPC_SEMOP:
			result = do_semop(order, data, length, wait);
			break;
		case IPC_MSGSND:
			result = do_msgsnd(order, data, length, wait);
			break;
		case IPC_MSGRCV:
			result = do_msgrcv(order, wait);
			break;
		default:
			result = do_control(order, data, length);
		}
	}
	become_root();
	outcome.word = (struct word){ .result = result, .pid = getpid(), .over = 1 };
	return result;
}

/* Whether it has not been done only because nobody has waited. */
static bool would_wait(const struct ipc_order *order, const unsigned char *data, size_t length, int64_t result)
{
	const size_t before = order->groups * sizeof(gid_t);
	struct sembuf operation;

	switch (order->call) {
	case IPC_MSGSND:
		return result == -EAGAIN && !(order->words[1] & IPC_NOWAIT);
	case IPC_MSGRCV:
		return result == -ENOMSG && !(order->words[2] & IPC_NOWAIT);
	case IPC_SEMOP:
		if (result != -EAGAIN || !order->words[0])
			return false;
		for (size_t at = before; at + sizeof(operation) <= length; at += sizeof(operation)) {
			memcpy(&operation, data + at, sizeof(operation));
			if (!(operation.sem_flg & IPC_NOWAIT))
				return true;
		}
		return false;
	default:
		return false;
	}
}

static bool uses_undo(const struct task *task)
{
	struct sembuf operation;

	if (task->order.call != IPC_SEMOP)
		return false;
	for (size_t at = task->order.groups * sizeof(gid_t); at + sizeof(operation) <= task->length;
	     at += sizeof(operation)) {
		memcpy(&operation, task->data + at, sizeof(operation));
		if (operation.sem_flg & SEM_UNDO)
			return true;
	}
	return false;
}

/* -- children ----------------------------------------------------------------------------------- */

static void keep_only(int *line)
{
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (dup2(*line, 0) < 0)
		_exit(1);
	(void)close_range(1, UINT_MAX, 0);
	*line = 0;
}

static void say_outcome(int line, const struct ipc_order *order)
{
	(void)!send(line, &outcome, sizeof(outcome.word) + size_of_answer(order, outcome.word.result), MSG_NOSIGNAL);
}

static _Noreturn void be_worker(int line, const struct packet *packet, size_t length)
{
	const struct word hello = { .pid = getpid() };

	(void)!send(line, &hello, sizeof(hello), MSG_NOSIGNAL);
	perform(&packet->order, packet->data, length, true);
	say_outcome(line, &packet->order);
	_exit(0);
}

static int receive_line(int from)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	char byte;
	int fd = -1;
	struct iovec part = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	if (recvmsg(from, &message, MSG_CMSG_CLOEXEC) == 1 && message.msg_controllen)
		memcpy(&fd, CMSG_DATA(&control.head), sizeof(fd));
	return fd;
}

static bool send_line(int to, int fd)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	char byte = 0;
	struct iovec part = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	control.head.cmsg_level = SOL_SOCKET;
	control.head.cmsg_type = SCM_RIGHTS;
	control.head.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
	return sendmsg(to, &message, MSG_NOSIGNAL) == 1;
}

/* Its workers share its undo, which is done when the last of them has ended. */
static _Noreturn void be_holder(int line)
{
	static struct packet packet;
	int task;

	keep_only(&line);
	while ((task = receive_line(line)) >= 0) {
		const ssize_t got = recv(task, &packet, sizeof(packet), 0);
		const size_t length = (size_t)got - sizeof(packet.order);

		if (got >= (ssize_t)sizeof(packet.order)) {
			const int64_t result = perform(&packet.order, packet.data, length, false);

			if (!would_wait(&packet.order, packet.data, length, result)) {
				say_outcome(task, &packet.order);
			} else if (!syscall(SYS_clone, CLONE_SYSVSEM | SIGCHLD, 0, 0, 0, 0)) {
				keep_only(&task);
				be_worker(task, &packet, length);
			}
		}
		close(task);
	}
	_exit(0);
}

static struct holder *find_holder(uint32_t owner, uint32_t pid)
{
	struct holder *holder = holders;

	while (holder && (holder->owner != owner || holder->pid != pid))
		holder = holder->next;
	return holder;
}

static struct holder *get_holder(uint32_t owner, uint32_t pid)
{
	struct holder *holder = find_holder(owner, pid);
	int pair[2];

	if (holder)
		return holder;
	holder = calloc(1, sizeof(*holder));
	if (!holder || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		free(holder);
		return NULL;
	}
	*holder = (struct holder){ .next = holders, .owner = owner, .pid = pid, .line = pair[0] };
	holder->process = fork();
	if (!holder->process)
		be_holder(pair[1]);
	close(pair[1]);
	if (holder->process < 0) {
		close(pair[0]);
		free(holder);
		return NULL;
	}
	holders = holder;
	return holder;
}

static void end_holder(struct holder *holder)
{
	struct holder **place = &holders;

	while (*place != holder)
		place = &(*place)->next;
	*place = holder->next;
	(void)kill(holder->process, SIGKILL);
	close(holder->line);
	while (holder->adjustments) {
		struct adjustment *next = holder->adjustments->next;

		free(holder->adjustments);
		holder->adjustments = next;
	}
	free(holder);
}

static void note_undo(const struct task *task)
{
	struct holder *holder = find_holder(task->order.owner, task->order.pid);
	struct adjustment *one = holder ? holder->adjustments : NULL;
	struct sembuf operation;

	if (!holder)
		return;
	while (one && one->id != task->order.object)
		one = one->next;
	if (!one) {
		const size_t count = count_semaphores(task->order.object);

		one = calloc(1, sizeof(*one) + count * sizeof(one->values[0]));
		if (!one)
			return;
		one->next = holder->adjustments;
		one->id = task->order.object;
		one->count = (uint32_t)count;
		holder->adjustments = one;
	}
	for (size_t at = task->order.groups * sizeof(gid_t); at + sizeof(operation) <= task->length;
	     at += sizeof(operation)) {
		memcpy(&operation, task->data + at, sizeof(operation));
		if (operation.sem_flg & SEM_UNDO && operation.sem_num < one->count)
			one->values[operation.sem_num] -= operation.sem_op;
	}
}

/* As the kernel does when a value is set: nothing of it is undone any more. `number` -1: all of the set. */
static void forget_undo(int id, int64_t number)
{
	for (struct holder *holder = holders; holder; holder = holder->next)
		for (struct adjustment *one = holder->adjustments; one; one = one->next)
			for (uint32_t i = 0; one->id == id && i < one->count; i++)
				if (number < 0 || number == i)
					one->values[i] = 0;
}

/* -- snapshots ---------------------------------------------------------------------------------- */

static size_t kept_length;

static void *keep(const void *data, size_t length)
{
	unsigned char *place = kept + kept_length;

	if (kept_length + length > MAX_KEPT)
		return NULL;
	if (length)
		memcpy(place, data, length);
	kept_length += length;
	return place;
}

static bool keep_permissions(struct ipc_snapshot *head, const struct ipc64_perm *from)
{
	head->key = from->key;
	head->mode = from->mode;
	head->uid = from->uid;
	head->gid = from->gid;
	head->cuid = from->cuid;
	head->cgid = from->cgid;
	return true;
}

static bool is_same_queue(const struct msqid64_ds *one, const struct msqid64_ds *other)
{
	return one->msg_qnum == other->msg_qnum && one->msg_cbytes == other->msg_cbytes &&
	       one->msg_stime == other->msg_stime && one->msg_rtime == other->msg_rtime &&
	       one->msg_lspid == other->msg_lspid && one->msg_lrpid == other->msg_lrpid;
}

static bool keep_messages(struct ipc_snapshot *head)
{
	static struct {
		long type;
		unsigned char text[MAX_KEPT];
	} message;

	for (head->count = 0;; head->count++) {
		const long got = syscall(SYS_msgrcv, head->id, &message, sizeof(message.text), (long)head->count,
					 IPC_NOWAIT | MSG_COPY);
		const struct ipc_message one = { .type = message.type, .length = (uint32_t)got };

		if (got < 0)
			return errno == ENOMSG;
		if (!keep(&one, sizeof(one)) || !keep(message.text, (size_t)got))
			return false;
	}
}

/* One by one: if this node's own processes were at it meanwhile, again. */
static bool keep_queue(struct ipc_snapshot *head)
{
	struct msqid64_ds before = { 0 }, after = { 0 };

	for (int tries = 0; tries < 5; tries++) {
		kept_length = sizeof(*head);
		if (syscall(SYS_msgctl, head->id, IPC_STAT, &before) || !keep_messages(head) ||
		    syscall(SYS_msgctl, head->id, IPC_STAT, &after))
			return false;
		if (is_same_queue(&before, &after))
			break;
	}
	head->room = (uint32_t)after.msg_qbytes;
	return keep_permissions(head, &after.msg_perm);
}

static int32_t sum_held(int id, uint32_t number)
{
	int32_t sum = 0;

	for (const struct holder *holder = holders; holder; holder = holder->next)
		for (const struct adjustment *one = holder->adjustments; one; one = one->next)
			if (one->id == id && number < one->count)
				sum += one->values[number];
	return sum;
}

static bool keep_semaphores(struct ipc_snapshot *head)
{
	static int values[2 * MAX_SEMAPHORES];
	struct semid64_ds about = { 0 };

	if (syscall(SYS_semctl, head->id, 0, IPC_STAT, &about) || about.sem_nsems > MAX_SEMAPHORES ||
	    syscall(SYS_semctl, head->id, 0, GET_UNDO, values))
		return false;
	head->count = (uint32_t)about.sem_nsems;
	for (uint32_t i = 0; i < head->count; i++) {
		const struct ipc_value value = {
			.value = values[i],
			.undo = values[head->count + i] - sum_held(head->id, i),
		};

		if (!keep(&value, sizeof(value)))
			return false;
	}
	for (const struct holder *holder = holders; holder; holder = holder->next) {
		const struct ipc_undo undo = { .owner = holder->owner, .pid = holder->pid };

		for (const struct adjustment *one = holder->adjustments; one; one = one->next) {
			if (one->id != head->id || one->count != head->count)
				continue;
			if (!keep(&undo, sizeof(undo)) || !keep(one->values, one->count * sizeof(one->values[0])))
				return false;
			head->undos++;
		}
	}
	return keep_permissions(head, &about.sem_perm);
}

static int object_of(const struct task *task)
{
	return is_get(task->order.call) ? (int)task->result : task->order.object;
}

static bool concerns(const struct task *task, uint32_t kind, int id)
{
	return kind_of(task->order.call) == kind && object_of(task) == id;
}

static void keep_answers(struct ipc_snapshot *head)
{
	for (const struct task *task = tasks; task; task = task->next) {
		const size_t before = kept_length;
		const struct ipc_report report = {
			.kind = IPC_RESULT,
			.owner = task->order.owner,
			.id = task->order.id,
			.result = task->result,
			.length = (uint32_t)task->out_length,
		};

		if (!task->done || !concerns(task, head->kind, head->id))
			continue;
		if (keep(&report, sizeof(report)) && keep(task->out, task->out_length))
			head->answers++;
		else
			kept_length = before;
	}
}

/* Makes it in `kept`, and returns its length: 0 if there is no such object. */
static size_t take_snapshot(uint32_t kind, int id)
{
	struct ipc_snapshot head = { .version = ++version, .kind = kind, .id = id };
	bool fits;

	kept_length = sizeof(head);
	if (kind == IPC_MEMORY)
		return 0;
	errno = 0;
	fits = kind == IPC_QUEUE ? keep_queue(&head) : keep_semaphores(&head);
	if (!fits && (errno == EINVAL || errno == EIDRM))
		return 0;
	if (fits) {
		keep_answers(&head);
	} else {
		head.count = VOID;
		head.undos = 0;
		kept_length = sizeof(head);
	}
	memcpy(kept, &head, sizeof(head));
	return kept_length;
}

/* -- what the daemon hears ---------------------------------------------------------------------- */

static void answer(struct task *task, size_t snapshot)
{
	static unsigned char room[MAX_DATA + MAX_KEPT];
	const struct ipc_report head = {
		.kind = IPC_RESULT,
		.owner = task->order.owner,
		.id = task->order.id,
		.result = task->result,
		.length = (uint32_t)task->out_length,
	};

	if (task->out_length)
		memcpy(room, task->out, task->out_length);
	memcpy(room + task->out_length, kept, snapshot);
	task->told = true;
	keeper_say(&head, sizeof(head), room, task->out_length + snapshot, -1);
}

static void end_task(struct task *task, int64_t result, const void *data, size_t length)
{
	task->done = true;
	task->result = result;
	task->out = length ? malloc(length) : NULL;
	if (task->out) {
		memcpy(task->out, data, length);
		task->out_length = length;
	}
	if (task->line >= 0)
		close(task->line);
	task->line = -1;
	if (result < 0)
		return;
	if (uses_undo(task))
		note_undo(task);
	if (task->order.call == IPC_SEMCTL && task->order.words[1] == SETALL)
		forget_undo(task->order.object, -1);
	if (task->order.call == IPC_SEMCTL && task->order.words[1] == SETVAL)
		forget_undo(task->order.object, task->order.words[0]);
}

static void hear_worker(struct task *task)
{
	const ssize_t got = recv(task->line, &outcome, sizeof(outcome), MSG_DONTWAIT);

	if (got < 0 && errno == EAGAIN)
		return;
	if (got < (ssize_t)sizeof(outcome.word))
		end_task(task, -EINTR, NULL, 0);
	else if (outcome.word.over)
		end_task(task, outcome.word.result, outcome.data, (size_t)got - sizeof(outcome.word));
	else
		task->worker = outcome.word.pid;
}

/* Whether a worker sleeps in its call: one that was woken has something to say. */
static bool is_asleep(const struct task *task)
{
	char path[64], line[256];
	const char *end;
	ssize_t got;
	int fd;

	if (!task->worker)
		return false;
	(void)snprintf(path, sizeof(path), "/proc/%d/stat", task->worker);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	got = read(fd, line, sizeof(line) - 1);
	close(fd);
	line[got < 0 ? 0 : got] = 0;
	end = strrchr(line, ')');
	return end && end[1] == ' ' && end[2] == 'S';
}

/*
 * What has just been done may have let others' workers go on. They have what they have got, so the object
 * is without it: no snapshot before it is known what came of them.
 */
static void settle_others(uint32_t kind, int id)
{
	for (struct task *task = tasks; task; task = task->next) {
		int waited = 0;

		if (task->line < 0 || is_get(task->order.call) || !concerns(task, kind, id))
			continue;
		while (task->line >= 0 && waited < SETTLE_MS && !is_asleep(task)) {
			struct pollfd poller = { .fd = task->line, .events = POLLIN };

			if (poll(&poller, 1, 5) > 0)
				hear_worker(task);
			waited += 5;
		}
	}
}

static bool wants_snapshot(const struct task *task)
{
	return task->order.flags & IPC_SNAPSHOT && task->result >= 0;
}

/* Answers what has been done to an object and not been answered, with what the object is now. */
static void answer_all(uint32_t kind, int id)
{
	size_t snapshot = 0;
	bool wanted = false;

	for (const struct task *task = tasks; task; task = task->next)
		wanted |= task->done && !task->told && concerns(task, kind, id) && wants_snapshot(task);
	if (wanted) {
		settle_others(kind, id);
		snapshot = take_snapshot(kind, id);
	}
	for (struct task *task = tasks; task; task = task->next)
		if (task->done && !task->told && concerns(task, kind, id))
			answer(task, wants_snapshot(task) ? snapshot : 0);
}

static void finish(struct task *task, int64_t result, const void *data, size_t length)
{
	end_task(task, result, data, length);
	if (result < 0)
		answer(task, 0);
	else
		answer_all(kind_of(task->order.call), object_of(task));
}

/* -- made anew ---------------------------------------------------------------------------------- */

static const char *const NEXT_ID[] = { "/proc/sys/kernel/sem_next_id", "/proc/sys/kernel/msg_next_id" };

static bool set_next(uint32_t kind, int id)
{
	char text[16];
	const int length = snprintf(text, sizeof(text), "%d", id);
	const int fd = open(NEXT_ID[kind], O_WRONLY | O_CLOEXEC);
	const bool good = fd >= 0 && write(fd, text, (size_t)length) == length;

	if (fd >= 0)
		close(fd);
	return good;
}

static bool is_there(uint32_t kind, int id)
{
	union {
		struct semid64_ds set;
		struct msqid64_ds queue;
	} about;

	if (kind == IPC_QUEUE)
		return !syscall(SYS_msgctl, id, IPC_STAT, &about);
	return !syscall(SYS_semctl, id, 0, IPC_STAT, &about);
}

struct reader {
	const unsigned char *at, *end;
};

static const void *take(struct reader *from, size_t length)
{
	const unsigned char *place = from->at;

	if ((size_t)(from->end - from->at) < length)
		return NULL;
	from->at += length;
	return place;
}

static bool make_messages(const struct ipc_snapshot *head, struct reader *from)
{
	static struct {
		long type;
		unsigned char text[MAX_KEPT];
	} message;

	for (uint32_t i = 0; i < head->count; i++) {
		const void *place = take(from, sizeof(struct ipc_message));
		struct ipc_message one;

		if (!place)
			return false;
		memcpy(&one, place, sizeof(one));
		place = take(from, one.length);
		if (!place)
			return false;
		message.type = (long)one.type;
		memcpy(message.text, place, one.length);
		if (syscall(SYS_msgsnd, head->id, &message, (size_t)one.length, IPC_NOWAIT))
			return false;
	}
	return true;
}

/* Has a holder do again what of it would be undone. */
static bool make_undo(const struct ipc_snapshot *head, const struct ipc_undo *undo, const int32_t *values)
{
	static struct packet packet;
	struct sembuf *operations = (struct sembuf *)(void *)packet.data;
	size_t count = 0, size;
	struct holder *holder = get_holder(undo->owner, undo->pid);
	struct adjustment *one = calloc(1, sizeof(*one) + head->count * sizeof(one->values[0]));
	int pair[2];
	bool good;

	if (!holder || !one || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		free(one);
		return false;
	}
	one->next = holder->adjustments;
	one->id = head->id;
	one->count = head->count;
	memcpy(one->values, values, head->count * sizeof(values[0]));
	holder->adjustments = one;
	packet.order = (struct ipc_order){ .call = IPC_SEMOP, .object = head->id };
	for (uint32_t i = 0; i < head->count; i++)
		if (values[i])
			operations[count++] = (struct sembuf){
				.sem_num = (unsigned short)i,
				.sem_op = (short)-values[i],
				.sem_flg = SEM_UNDO | IPC_NOWAIT,
			};
	if (!count) {
		close(pair[0]);
		close(pair[1]);
		return true;
	}
	size = sizeof(packet.order) + count * sizeof(*operations);
	good = send(pair[0], &packet, size, MSG_NOSIGNAL) == (ssize_t)size && send_line(holder->line, pair[1]);
	close(pair[1]);
	good = good && recv(pair[0], &outcome, sizeof(outcome), 0) >= (ssize_t)sizeof(outcome.word) &&
	       !outcome.word.result;
	close(pair[0]);
	return good;
}

/* First as if all had ended that would undo something, and then who lives does it again. */
static bool make_values(const struct ipc_snapshot *head, struct reader *from)
{
	static int32_t sums[MAX_SEMAPHORES];
	static uint16_t values[MAX_SEMAPHORES];
	const unsigned char *undos;
	const size_t each = sizeof(struct ipc_undo) + head->count * sizeof(int32_t);
	const void *place;

	for (uint32_t i = 0; i < head->count; i++) {
		struct ipc_value one;

		place = take(from, sizeof(one));
		if (!place)
			return false;
		memcpy(&one, place, sizeof(one));
		sums[i] = one.value + one.undo;
	}
	undos = take(from, head->undos * each);
	if (!undos)
		return false;
	for (uint32_t i = 0; i < head->count; i++) {
		for (uint32_t j = 0; j < head->undos; j++) {
			int32_t value;

			memcpy(&value, undos + j * each + sizeof(struct ipc_undo) + i * sizeof(value), sizeof(value));
			sums[i] += value;
		}
		values[i] = (uint16_t)(sums[i] < 0 ? 0 : sums[i] > SEMVMX ? SEMVMX : sums[i]);
	}
	if (syscall(SYS_semctl, head->id, 0, SETALL, values))
		return false;
	for (uint32_t j = 0; j < head->undos; j++) {
		struct ipc_undo undo;

		memcpy(&undo, undos + j * each, sizeof(undo));
		memcpy(sums, undos + j * each + sizeof(undo), head->count * sizeof(sums[0]));
		if (!make_undo(head, &undo, sums))
			(void)fprintf(stderr, "ipckeeper: the undo of %u is lost\n", undo.pid);
	}
	return true;
}

static void make_answers(const struct ipc_snapshot *head, struct reader *from)
{
	for (uint32_t i = 0; i < head->answers; i++) {
		const void *place = take(from, sizeof(struct ipc_report)), *data;
		struct ipc_report report;
		struct task *task;

		if (!place)
			return;
		memcpy(&report, place, sizeof(report));
		data = take(from, report.length);
		task = calloc(1, sizeof(*task));
		if (!data || !task) {
			free(task);
			return;
		}
		task->order = (struct ipc_order){
			.owner = report.owner,
			.id = report.id,
			.call = head->kind == IPC_QUEUE ? IPC_MSGCTL : IPC_SEMCTL,
			.words = { 0, IPC_STAT },
			.object = head->id,
			.flags = IPC_SNAPSHOT,
		};
		task->line = -1;
		end_task(task, report.result, data, report.length);
		task->told = true;
		task->next = tasks;
		tasks = task;
	}
}

static int64_t make_object(const struct ipc_snapshot *head)
{
	const struct ipc_order creator = { .uid = head->cuid, .gid = head->cgid };
	const int flags = IPC_CREAT | IPC_EXCL | 0600;
	long id = -1;

	if (!set_next(head->kind, head->id))
		return -errno;
	if (become(&creator, NULL))
		id = head->kind == IPC_QUEUE ? syscall(SYS_msgget, head->key, flags) :
					       syscall(SYS_semget, head->key, (int)head->count, flags);
	become_root();
	if (id >= 0 && id != head->id) {
		(void)(head->kind == IPC_QUEUE ? syscall(SYS_msgctl, id, IPC_RMID, NULL) :
						 syscall(SYS_semctl, id, 0, IPC_RMID, NULL));
		return -EEXIST;
	}
	return id < 0 ? -errno : id;
}

static bool set_permissions(const struct ipc_snapshot *head)
{
	struct msqid64_ds queue = {
		.msg_perm = { .uid = head->uid, .gid = head->gid, .mode = head->mode },
		.msg_qbytes = head->room,
	};
	struct semid64_ds set = { .sem_perm = { .uid = head->uid, .gid = head->gid, .mode = head->mode } };

	if (head->kind == IPC_QUEUE)
		return !syscall(SYS_msgctl, head->id, IPC_SET, &queue);
	return !syscall(SYS_semctl, head->id, 0, IPC_SET, &set);
}

static int64_t restore(const unsigned char *data, size_t length)
{
	struct reader from = { .at = data, .end = data + length };
	const void *place = take(&from, sizeof(struct ipc_snapshot));
	struct ipc_snapshot head;
	int64_t result;

	if (!place)
		return -EINVAL;
	memcpy(&head, place, sizeof(head));
	if (head.kind > IPC_QUEUE || head.count == VOID || (head.kind == IPC_SEMAPHORES && head.count > MAX_SEMAPHORES))
		return -EINVAL;
	if (is_there(head.kind, head.id))
		return head.id;
	result = make_object(&head);
	if (result < 0)
		return result;
	if (!set_permissions(&head) ||
	    !(head.kind == IPC_QUEUE ? make_messages(&head, &from) : make_values(&head, &from)))
		return -EIO;
	make_answers(&head, &from);
	version = version > head.version ? version : head.version;
	return result;
}

/* -- what is ordered ---------------------------------------------------------------------------- */

static struct task **find_task(uint32_t owner, uint64_t id)
{
	struct task **place = &tasks;

	while (*place && ((*place)->order.owner != owner || (*place)->order.id != id))
		place = &(*place)->next;
	return place;
}

static void forget(struct task **place)
{
	struct task *task = *place;

	*place = task->next;
	if (task->line >= 0) {
		if (task->worker)
			(void)kill(task->worker, SIGKILL);
		close(task->line);
	}
	free(task->out);
	free(task);
}

/* Has it done by somebody who can wait: a child of ours, or of whom its undo is. */
static void begin_worker(struct task *task, const struct packet *packet, size_t length)
{
	const bool undo = uses_undo(task);
	struct holder *holder = undo ? get_holder(task->order.owner, task->order.pid) : NULL;
	const size_t size = sizeof(packet->order) + length;
	int pair[2];

	if ((undo && !holder) || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		finish(task, -ENOMEM, NULL, 0);
		return;
	}
	if (holder) {
		if (send(pair[0], packet, size, MSG_NOSIGNAL) == (ssize_t)size && send_line(holder->line, pair[1]))
			task->line = pair[0];
	} else {
		task->worker = fork();
		if (!task->worker) {
			int line = pair[1];

			keep_only(&line);
			be_worker(line, packet, length);
		}
		if (task->worker > 0)
			task->line = pair[0];
	}
	close(pair[1]);
	if (task->line < 0) {
		close(pair[0]);
		task->worker = 0;
		finish(task, -EAGAIN, NULL, 0);
	}
}

static void make_room(uint32_t owner)
{
	struct task **oldest = NULL;
	int count = 0;

	for (struct task **place = &tasks; *place; place = &(*place)->next) {
		if (!(*place)->done || (*place)->order.owner != owner)
			continue;
		oldest = oldest ? oldest : place;
		count++;
	}
	if (count > MAX_REMEMBERED)
		forget(oldest);
}

static void begin(const struct packet *packet, size_t length)
{
	const struct ipc_order *order = &packet->order;
	struct task **place = find_task(order->owner, order->id), *task = *place;
	int64_t result;

	/* The daemon that asked for it first has died, or the object's first node. */
	if (task) {
		if (task->done)
			answer(task, wants_snapshot(task) ? take_snapshot(kind_of(task->order.call), object_of(task)) : 0);
		return;
	}
	task = calloc(1, sizeof(*task) + length);
	if (!task)
		return;
	task->order = *order;
	task->line = -1;
	task->length = length;
	memcpy(task->data, packet->data, length);
	*place = task;
	make_room(order->owner);
	if (order->kind == IPC_RESTORE) {
		end_task(task, restore(packet->data, length), NULL, 0);
		answer(task, 0);
		return;
	}
	if (uses_undo(task)) {
		begin_worker(task, packet, length);
		return;
	}
	result = perform(order, packet->data, length, false);
	if (would_wait(order, packet->data, length, result))
		begin_worker(task, packet, length);
	else
		finish(task, result, outcome.data, size_of_answer(order, result));
}

static void cancel(uint32_t owner, uint64_t id)
{
	struct task *task = *find_task(owner, id);

	if (!task || task->done)
		return;
	/* It may have got what it waits for: then that is the answer. */
	task->cancelled = true;
	if (task->worker)
		(void)kill(task->worker, SIGUSR1);
}

/* `pid` 0: of all its processes. */
static void drop(uint32_t owner, uint32_t pid)
{
	for (struct task **place = &tasks; *place;)
		if ((*place)->order.owner == owner && (!pid || ((*place)->order.pid == pid && !(*place)->done)))
			forget(place);
		else
			place = &(*place)->next;
	for (struct holder *holder = holders, *next; holder; holder = next) {
		next = holder->next;
		if (holder->owner == owner && (!pid || holder->pid == pid))
			end_holder(holder);
	}
}

static void obey(const struct packet *packet, size_t length)
{
	const struct ipc_order *order = &packet->order;
	struct task **place;

	switch (order->kind) {
	case IPC_CANCEL:
		cancel(order->owner, order->id);
		break;
	case IPC_DONE:
		place = find_task(order->owner, order->id);
		if (*place && (*place)->done)
			forget(place);
		break;
	case IPC_DROP:
		drop(order->owner, 0);
		break;
	case IPC_ENDED:
		drop(order->owner, order->pid);
		break;
	default:
		begin(packet, length);
	}
}

/* -- the daemon --------------------------------------------------------------------------------- */

static void say(uint32_t kind, uint32_t owner, uint64_t id)
{
	const struct ipc_report head = { .kind = kind, .owner = owner, .id = id };

	keeper_say(&head, sizeof(head), NULL, 0, -1);
}

static void take_daemon(void)
{
	if (!keeper_take_daemon())
		return;
	for (const struct holder *holder = holders; holder; holder = holder->next)
		say(IPC_HELD, holder->owner, holder->pid);
	say(IPC_TOLD, 0, 0);
}

static void hear_daemon(void)
{
	static struct packet packet;
	const ssize_t got = recv(keeper_daemon, &packet, sizeof(packet), 0);

	if (got <= 0)
		keeper_lose_daemon();
	else if ((size_t)got >= sizeof(packet.order))
		obey(&packet, (size_t)got - sizeof(packet.order));
}

/* -- waiting ------------------------------------------------------------------------------------ */

struct polled {
	struct pollfd *pollers;
	struct task **waiting;
	size_t room;
	bool impatient;		/* somebody who is to end has not said so */
};

static size_t list_waiting(struct polled *polled)
{
	size_t count = 0;

	polled->impatient = false;
	for (struct task *task = tasks; task; task = task->next) {
		if (task->done || task->line < 0)
			continue;
		if (KEEPER_OTHERS + count >= polled->room) {
			const size_t room = 2 * polled->room + 64;
			void *pollers = realloc(polled->pollers, room * sizeof(*polled->pollers));
			void *waiting;

			if (!pollers)
				break;
			polled->pollers = pollers;
			waiting = realloc(polled->waiting, room * sizeof(struct task *));
			if (!waiting)
				break;
			polled->waiting = waiting;
			polled->room = room;
		}
		polled->impatient |= task->cancelled;
		polled->waiting[count] = task;
		polled->pollers[KEEPER_OTHERS + count++] = (struct pollfd){ .fd = task->line, .events = POLLIN };
	}
	return count;
}

static void step(struct polled *polled)
{
	const size_t count = list_waiting(polled);
	struct pollfd *pollers = polled->pollers;
	int happened;

	happened = keeper_poll(pollers, KEEPER_OTHERS + count, polled->impatient ? AGAIN_MS : -1);
	/* The signal comes to nothing if the call has not begun. */
	for (size_t i = 0; !happened && i < count; i++)
		if (polled->waiting[i]->cancelled && polled->waiting[i]->worker)
			(void)kill(polled->waiting[i]->worker, SIGUSR1);
	if (happened <= 0)
		return;
	for (size_t i = 0; i < count; i++) {
		struct task *task = polled->waiting[i];

		if (!pollers[KEEPER_OTHERS + i].revents || task->done)
			continue;
		hear_worker(task);
		if (!task->done)
			continue;
		if (task->result < 0)
			answer(task, 0);
		else
			answer_all(kind_of(task->order.call), object_of(task));
	}
	if (pollers[KEEPER_DAEMON].revents)
		hear_daemon();
	if (pollers[KEEPER_LISTENER].revents)
		take_daemon();
}

static void wake(int number)
{
	(void)number;
}

int main(int argc, char **argv)
{
	/* Without SA_RESTART. */
	const struct sigaction waking = { .sa_handler = wake };
	struct polled polled = { .room = 64 };

	if (argc != 2) {
		(void)fprintf(stderr, "usage: ipckeeper SOCKET\n");
		return 2;
	}
	(void)signal(SIGCHLD, SIG_IGN);
	(void)sigaction(SIGUSR1, &waking, NULL);
	version = keeper_first_number();
	polled.pollers = calloc(polled.room, sizeof(*polled.pollers));
	polled.waiting = calloc(polled.room, sizeof(struct task *));
	if (!polled.pollers || !polled.waiting || !keeper_begin("ipckeeper", argv[1]))
		return 1;
	for (;;)
		step(&polled);
}
