/*
 * devicekeeper SOCKET USERLAND: this node's devices that processes of other nodes have open.
 *
 * What such a process does to its descriptor is ordered by the daemon and done here. Each open device has a
 * process of its own, a holder, which has opened it with the rights of who asked: a driver that waits keeps
 * nobody else, and what a driver allows only to some is allowed to the same ones. The daemon may be killed:
 * holders go on, and remember what came of an order until that has arrived. The first process only passes on
 * what daemon and holders say to each other. USERLAND is the file of the mount namespace whose /dev is meant.
 * Runs as root; no user can send signals to holders, as only their effective IDs are his.
 *
 * A pipe or terminal that has been passed on to another node by SCM_RIGHTS has such a holder, too, which is
 * given it open.
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/major.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>

#include "devicekeeper.h"
#include "keeper.h"

enum {
	MAX_DATA = 32 * 1024,
	MAX_IOCTL = 4096,
	MOST_QUEUED = 8 * 1024 * 1024,	/* bytes that a holder has not heard yet */
	AGAIN_US = 20000,
	PASSED = 2,			/* a holder's descriptor of what it was given */
};

struct packet {
	struct device_order order;
	unsigned char data[MAX_DATA];
};

struct answer {
	struct device_report head;
	unsigned char data[MAX_DATA];
};

struct holder {
	struct holder *next;
	uint32_t number, owner;
	uint64_t opening;	/* the id of the order to open it */
	int fd;
	pid_t pid;
};

/* An order, in a holder. */
struct task {
	struct task *next;
	struct device_order order;
	bool done;
	int64_t result;
	size_t length;
	unsigned char data[];
};

static struct holder *holders;
static uint32_t last_end;
static int own_space = -1;
static const char *userland;

/* In a holder. */
static struct task *tasks;	/* the oldest first: who has waited longest is served first */
static int up = -1, device = -1;
static uint32_t own_number, own_kind;
static bool is_shared;		/* its flags are another's as well: it is not to be nonblocking */
static volatile sig_atomic_t alarmed;

/* Tells the first process, and so the daemon. */
static void say(const struct device_report *head, const void *data, size_t length)
{
	char *bytes = (char *)(uintptr_t)data;
	struct iovec parts[2] = {
		{ .iov_base = (void *)(uintptr_t)head, .iov_len = sizeof(*head) },
		{ .iov_base = bytes, .iov_len = length },
	};
	const struct msghdr message = { .msg_iov = parts, .msg_iovlen = length ? 2 : 1 };

	/* If it is gone that is seen where it is heard. */
	while (sendmsg(up, &message, MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
}

/* -- holders: what is ordered ------------------------------------------------------------------ */

static void answer(const struct task *task)
{
	const struct device_report head = {
		.kind = DEVICE_RESULT, .owner = task->order.owner, .id = task->order.id,
		.result = task->result, .end = own_number, .device = own_kind,
	};
	size_t length = 0;

	if (task->result >= 0 && task->order.kind == DEVICE_READ)
		length = (size_t)task->result;
	else if (task->result >= 0 && task->order.kind == DEVICE_IOCTL)
		length = task->order.size;
	say(&head, task->data, length);
}

static void finish(struct task *task, int64_t result)
{
	task->done = true;
	task->result = result;
	answer(task);
}

/* Returns a file below the userland's /dev that can be asked what it is; -1 and errno. */
static int find_device(int folder, const char *path)
{
	const struct open_how how = {
		.flags = O_PATH | O_CLOEXEC | O_NOFOLLOW,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS,
	};

	return (int)syscall(SYS_openat2, folder, path, &how, sizeof(how));
}

static int open_found(int found, int flags)
{
	char name[32];
	struct stat file;

	if (fstat(found, &file))
		return -1;
	if (!S_ISCHR(file.st_mode) && !S_ISBLK(file.st_mode)) {
		errno = ENXIO;
		return -1;
	}
	(void)snprintf(name, sizeof(name), "/proc/self/fd/%d", found);
	/* It never becomes anybody's terminal. */
	return open(name, flags | O_CLOEXEC | O_NOCTTY);
}

/* The folder of devices, with the rights of a caller from then on; -1 and errno. */
static int become(const struct device_caller *caller, const gid_t *groups)
{
	const int space = open(userland, O_RDONLY | O_CLOEXEC);
	int folder;

	if (space < 0 || setns(space, CLONE_NEWNS))
		return -1;
	folder = open("/dev", O_PATH | O_DIRECTORY | O_CLOEXEC);
	close(space);
	if (folder < 0 || setns(own_space, CLONE_NEWNS) || setgroups(caller->groups, groups) ||
	    setegid(caller->gid) || seteuid(caller->uid))
		return -1;
	/* Last: it is cleared when a process changes whose it is. */
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	return folder;
}

static int64_t open_device(const struct task *task)
{
	struct device_caller caller;
	const unsigned char *rest = task->data + sizeof(caller);
	gid_t *groups;
	char *path;
	size_t size;
	int folder, found, flags;

	memcpy(&caller, task->data, sizeof(caller));
	size = caller.groups * sizeof(*groups);
	groups = malloc(size + 1);
	path = strndup((const char *)rest + size, task->length - sizeof(caller) - size);
	if (!groups || !path)
		return -ENOMEM;
	memcpy(groups, rest, size);
	folder = become(&caller, groups);
	found = folder < 0 ? -1 : find_device(folder, path);
	device = found < 0 ? -1 : open_found(found, (int)task->order.value);
	if (device < 0)
		return -errno;
	close(found);
	close(folder);
	free(groups);
	free(path);
	own_kind = lseek(device, 0, SEEK_CUR) < 0 ? DEVICE_STREAM : DEVICE_SEEKS;
	/* Who waits does so where he can be told to stop. */
	flags = fcntl(device, F_GETFL);
	(void)fcntl(device, F_SETFL, flags | O_NONBLOCK);
	return own_number;
}

/*
 * What has been passed on. Terminals are opened anew, so that the flags are this one's own. Pipes need not
 * be, and of others there is only one.
 */
static int64_t use_passed(void)
{
	struct stat file;

	device = PASSED;
	own_kind = DEVICE_STREAM;
	is_shared = true;
	if (!fstat(PASSED, &file) && S_ISCHR(file.st_mode) && major(file.st_rdev) >= UNIX98_PTY_SLAVE_MAJOR &&
	    major(file.st_rdev) < UNIX98_PTY_SLAVE_MAJOR + UNIX98_PTY_MAJOR_COUNT) {
		const int flags = fcntl(PASSED, F_GETFL) & O_ACCMODE;
		const int own = open("/proc/self/fd/2", flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

		if (own >= 0) {
			close(PASSED);
			device = own;
			is_shared = false;
		}
	}
	return own_number;
}

/* Reads or writes what another one may wait for as well; as much as surely is possible without waiting. */
static ssize_t transfer(struct task *task)
{
	const bool reads = task->order.kind == DEVICE_READ;
	struct iovec part = {
		.iov_base = task->data, .iov_len = reads ? task->order.value : task->length,
	};
	struct pollfd poller = { .fd = device, .events = reads ? POLLIN : POLLOUT };
	const ssize_t result = reads ? preadv2(device, &part, 1, -1, RWF_NOWAIT)
				     : pwritev2(device, &part, 1, -1, RWF_NOWAIT);

	if (result >= 0 || errno != EOPNOTSUPP)
		return result;
	if (poll(&poller, 1, 0) <= 0) {
		errno = EAGAIN;
		return -1;
	}
	if (part.iov_len > PIPE_BUF)
		part.iov_len = PIPE_BUF;
	return reads ? readv(device, &part, 1) : writev(device, &part, 1);
}

static int64_t do_order(struct task *task)
{
	const struct device_order *order = &task->order;
	const bool streams = own_kind == DEVICE_STREAM;
	ssize_t result;

	switch (order->kind) {
	case DEVICE_OPEN:
		return task->length ? open_device(task) : use_passed();
	case DEVICE_READ:
		if (is_shared)
			result = transfer(task);
		else
			result = streams ? read(device, task->data, order->value)
					 : pread(device, task->data, order->value, order->offset);
		break;
	case DEVICE_WRITE:
		if (is_shared)
			result = transfer(task);
		else
			result = streams ? write(device, task->data, task->length)
					 : pwrite(device, task->data, task->length, order->offset);
		break;
	case DEVICE_IOCTL:
		result = ioctl(device, order->value, task->data);
		break;
	case DEVICE_IOCTL_VALUE:
		result = ioctl(device, order->value, (unsigned long)order->size);
		break;
	case DEVICE_SEEK:
		result = lseek(device, order->offset, (int)order->value);
		break;
	case DEVICE_SYNC:
		result = fsync(device);
		break;
	default: {
		struct pollfd poller = { .fd = device, .events = (short)order->value };

		result = poll(&poller, 1, 0);
		if (result > 0)
			return poller.revents;
		if (result == 0 && !(order->flags & DEVICE_NONBLOCK))
			return -EAGAIN;
	}
	}
	return result < 0 ? -errno : result;
}

static bool waits(const struct task *task, int64_t result)
{
	if (result == -EINTR)
		return true;
	if (result != -EAGAIN)
		return false;
	if (task->order.kind == DEVICE_WATCH)
		return true;
	return (task->order.kind == DEVICE_READ || task->order.kind == DEVICE_WRITE) &&
		!(task->order.flags & DEVICE_NONBLOCK);
}

static void try_task(struct task *task)
{
	const int64_t result = do_order(task);

	if (!waits(task, result))
		finish(task, result);
}

static struct task **find_task(uint64_t id)
{
	struct task **place = &tasks;

	while (*place && (*place)->order.id != id)
		place = &(*place)->next;
	return place;
}

static void begin(const struct packet *packet, size_t length)
{
	struct task **place = find_task(packet->order.id), *task = *place;
	size_t room = length;

	/* The daemon that asked for it first has died. */
	if (task) {
		if (task->done)
			answer(task);
		return;
	}
	if (packet->order.kind == DEVICE_READ)
		room = packet->order.value;
	else if (packet->order.kind == DEVICE_IOCTL)
		room = MAX_IOCTL;
	task = calloc(1, sizeof(*task) + room);
	if (!task)
		_exit(1);
	task->order = packet->order;
	task->length = length;
	memcpy(task->data, packet->data, length);
	*place = task;
	try_task(task);
}

static void forget(uint64_t id)
{
	struct task **place = find_task(id), *task = *place;

	if (!task || !task->done)
		return;
	*place = task->next;
	/* It could not be opened, and who asked knows. */
	if (task->order.kind == DEVICE_OPEN && task->result < 0)
		_exit(0);
	free(task);
}

static _Noreturn void end_holder(const struct device_order *order)
{
	const struct device_report head = {
		.kind = DEVICE_RESULT, .owner = order->owner, .id = order->id, .end = own_number,
	};

	close(device);
	say(&head, NULL, 0);
	_exit(0);
}

static void hold(const struct packet *packet, size_t length)
{
	struct task *task;

	switch (packet->order.kind) {
	case DEVICE_CANCEL:
		task = *find_task(packet->order.id);
		if (task && !task->done)
			finish(task, -EINTR);
		break;
	case DEVICE_DONE:
		forget(packet->order.id);
		break;
	case DEVICE_CLOSE:
		end_holder(&packet->order);
	default:
		begin(packet, length);
	}
}

/* -- holders: waiting --------------------------------------------------------------------------- */

/* Whatever a driver waits for, it is to stop: the call may begin just behind the first signal. */
static void interrupt(int number)
{
	const struct itimerval soon = {
		.it_interval = { .tv_usec = AGAIN_US }, .it_value = { .tv_usec = AGAIN_US },
	};

	if (number == SIGUSR1 && !alarmed) {
		alarmed = 1;
		(void)setitimer(ITIMER_REAL, &soon, NULL);
	}
}

static void end_alarm(void)
{
	const struct itimerval never = { 0 };

	if (alarmed) {
		(void)setitimer(ITIMER_REAL, &never, NULL);
		alarmed = 0;
	}
}

/* Hears all there is; then nothing is left that the alarm was for. */
static void hear_orders(void)
{
	static struct packet packet;

	for (;;) {
		const ssize_t got = recv(up, &packet, sizeof(packet), MSG_DONTWAIT);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno == EAGAIN)
			break;
		if (got <= 0)
			_exit(0);
		hold(&packet, (size_t)got - sizeof(packet.order));
	}
	end_alarm();
}

static short events_of(const struct task *task)
{
	switch (task->order.kind) {
	case DEVICE_READ:
		return POLLIN;
	case DEVICE_WRITE:
		return POLLOUT;
	case DEVICE_WATCH:
		return (short)task->order.value;
	default:
		return 0;
	}
}

static _Noreturn void serve_device(void)
{
	for (;;) {
		struct pollfd pollers[2] = { { .fd = up, .events = POLLIN }, { .fd = -1 } };
		int timeout = -1;

		for (const struct task *task = tasks; task; task = task->next) {
			if (task->done)
				continue;
			if (!events_of(task) && task->order.kind != DEVICE_WATCH)
				timeout = 0;
			pollers[1].fd = device;
			pollers[1].events |= events_of(task);
		}
		(void)poll(pollers, 2, timeout);
		hear_orders();
		if (pollers[1].revents || !timeout)
			for (struct task *task = tasks; task; task = task->next)
				if (!task->done)
					try_task(task);
		/* What is ready, and not what anybody waits for. */
		if (pollers[1].revents & ~pollers[1].events)
			(void)usleep(AGAIN_US);
	}
}

static _Noreturn void be_holder(uint32_t number, int to, int passed)
{
	const struct sigaction action = { .sa_handler = interrupt };

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	(void)prctl(PR_SET_NAME, "ssi-device");
	if (dup2(to, 0) < 0 || dup2(own_space, 1) < 0 || (passed >= 0 && dup2(passed, PASSED) < 0))
		_exit(1);
	up = 0;
	own_space = 1;
	own_number = number;
	(void)close_range(3, UINT_MAX, 0);
	(void)sigaction(SIGUSR1, &action, NULL);
	(void)sigaction(SIGALRM, &action, NULL);
	serve_device();
}

/* -- the first process: who is told what -------------------------------------------------------- */

static void report(uint32_t kind, uint32_t owner, uint64_t id, int64_t result, uint32_t end)
{
	const struct device_report head = {
		.kind = kind, .owner = owner, .id = id, .result = result, .end = end,
	};

	keeper_say(&head, sizeof(head), NULL, 0, -1);
}

static struct holder *find_holder(const struct device_order *order)
{
	struct holder *holder = holders;

	while (holder && (order->end ? holder->number != order->end
				     : holder->owner != order->owner || holder->opening != order->id))
		holder = holder->next;
	return holder;
}

/* Returns whether what came along is whole. */
static bool is_sound(const struct packet *packet, size_t length)
{
	struct device_caller caller;

	switch (packet->order.kind) {
	case DEVICE_OPEN:
		if (!length)
			return true;
		if (length <= sizeof(caller))
			return false;
		memcpy(&caller, packet->data, sizeof(caller));
		return caller.groups < MAX_DATA &&
			length > sizeof(caller) + caller.groups * sizeof(gid_t);
	case DEVICE_READ:
		return !length && packet->order.value <= MAX_DATA;
	case DEVICE_IOCTL:
		return length <= MAX_IOCTL && packet->order.size <= MAX_IOCTL;
	default:
		return true;
	}
}

static struct holder *add_holder(const struct device_order *order, int passed)
{
	const int room = MOST_QUEUED;
	struct holder *holder = calloc(1, sizeof(*holder));
	int pair[2];

	if (!holder || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
		free(holder);
		return NULL;
	}
	(void)setsockopt(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
	*holder = (struct holder){
		.next = holders, .number = ++last_end, .owner = order->owner, .opening = order->id,
		.fd = pair[0], .pid = fork(),
	};
	if (!holder->pid)
		be_holder(holder->number, pair[1], passed);
	close(pair[1]);
	if (holder->pid < 0) {
		close(pair[0]);
		free(holder);
		return NULL;
	}
	holders = holder;
	return holder;
}

static void remove_holder(struct holder **place)
{
	struct holder *holder = *place;

	*place = holder->next;
	(void)kill(holder->pid, SIGKILL);
	close(holder->fd);
	report(DEVICE_GONE, holder->owner, 0, 0, holder->number);
	free(holder);
}

static void drop(uint32_t owner)
{
	for (struct holder **place = &holders; *place;)
		if ((*place)->owner == owner)
			remove_holder(place);
		else
			place = &(*place)->next;
}

static void pass_on(const struct packet *packet, size_t length, int passed)
{
	const struct device_order *order = &packet->order;
	struct holder *holder = find_holder(order);
	int64_t failed = -EBADF;

	if (!is_sound(packet, length)) {
		report(DEVICE_RESULT, order->owner, order->id, -EINVAL, order->end);
		return;
	}
	if (!holder && order->kind == DEVICE_OPEN && !order->end && (length || passed >= 0)) {
		holder = add_holder(order, passed);
		failed = -EAGAIN;
	}
	if (holder && send(holder->fd, packet, sizeof(*order) + length, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) {
		if (order->kind == DEVICE_CANCEL)
			(void)kill(holder->pid, SIGUSR1);
		return;
	}
	if (order->kind == DEVICE_CLOSE)
		failed = 0;
	if (order->kind != DEVICE_CANCEL && order->kind != DEVICE_DONE)
		report(DEVICE_RESULT, order->owner, order->id, failed, order->end);
}

static void take_daemon(void)
{
	if (!keeper_take_daemon())
		return;
	for (const struct holder *holder = holders; holder; holder = holder->next)
		report(DEVICE_HELD, holder->owner, 0, 0, holder->number);
	report(DEVICE_TOLD, 0, 0, 0, 0);
}

static void hear_daemon(void)
{
	static struct packet packet;
	int passed;
	const ssize_t got = keeper_hear(&packet, sizeof(packet), &passed);

	if (got <= 0) {
		keeper_lose_daemon();
	} else if ((size_t)got >= sizeof(packet.order)) {
		if (packet.order.kind == DEVICE_DROP)
			drop(packet.order.owner);
		else
			pass_on(&packet, (size_t)got - sizeof(packet.order), passed);
	}
	if (passed >= 0)
		close(passed);
}

/* Returns whether it is still there. */
static bool hear_holder(const struct holder *holder)
{
	static struct answer heard;
	const ssize_t got = recv(holder->fd, &heard, sizeof(heard), 0);

	if (got < (ssize_t)sizeof(heard.head))
		return false;
	keeper_say(&heard, (size_t)got, NULL, 0, -1);
	return true;
}

struct polled {
	struct pollfd *pollers;
	size_t room;
};

/* Returns how many places are polled; one for each holder, in their order. */
static size_t list_polled(struct polled *polled)
{
	size_t count = KEEPER_OTHERS;

	for (const struct holder *holder = holders; holder; holder = holder->next) {
		if (count >= polled->room) {
			const size_t room = 2 * polled->room;
			void *pollers = realloc(polled->pollers, room * sizeof(*polled->pollers));

			if (!pollers)
				break;
			polled->pollers = pollers;
			polled->room = room;
		}
		polled->pollers[count++] = (struct pollfd){ .fd = holder->fd, .events = POLLIN };
	}
	return count;
}

static void step(struct polled *polled)
{
	const size_t count = list_polled(polled);
	struct pollfd *pollers = polled->pollers;
	struct holder **place = &holders;

	if (keeper_poll(pollers, count, -1) < 0)
		return;
	for (size_t i = KEEPER_OTHERS; i < count; i++)
		if (pollers[i].revents && !hear_holder(*place))
			remove_holder(place);
		else
			place = &(*place)->next;
	if (pollers[KEEPER_DAEMON].revents)
		hear_daemon();
	if (pollers[KEEPER_LISTENER].revents)
		take_daemon();
}

int main(int argc, char **argv)
{
	struct polled polled = { .room = 64 };

	if (argc != 3) {
		(void)fprintf(stderr, "usage: devicekeeper SOCKET USERLAND\n");
		return 2;
	}
	(void)signal(SIGCHLD, SIG_IGN);
	last_end = keeper_first_number();
	userland = argv[2];
	own_space = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	polled.pollers = calloc(polled.room, sizeof(*polled.pollers));
	if (own_space < 0 || !polled.pollers) {
		(void)fprintf(stderr, "devicekeeper: %s\n", strerror(errno));
		return 1;
	}
	if (!keeper_begin("devicekeeper", argv[1]))
		return 1;
	for (;;)
		step(&polled);
}
