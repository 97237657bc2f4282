/*
 * Open files that somebody passes on with SCM_RIGHTS to another node: what is said of one, and the process
 * that opens it there. A root that recovers keeps that process, or the daemon of another node which it asks
 * for a stream, and not what is carried besides.
 */
#ifndef SSI_UNIXFILES_H
#define SSI_UNIXFILES_H

#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include "keeper.h"
#include "unixkeeper.h"

enum {
	UNIX_MOST_FILES = 253,		/* in a message: the kernel's SCM_MAX_FD */
	UNIX_MOST_PATH = 1024,
	UNIX_UNLINKED = 12,		/* a handle's type: image/kernel/patches/gfs2-open-unlinked.patch */
	UNIX_ROOT_KIND = 0x01161970,	/* GFS2, to statfs() */
	UNIX_FUSE = 0x81,		/* types of handles that FUSE gives: FILEID_INO64_GEN, */
	UNIX_FUSE_PARENT = 0x82,	/* ..._PARENT */
};

static const char unix_memory[] = "/dev/shm/";

struct unix_told {
	struct unix_passed head;
	char path[UNIX_MOST_PATH];
};

union unix_handle {
	struct file_handle head;
	unsigned char room[sizeof(struct file_handle) + sizeof(((struct unix_file *)0)->handle)];
};

static int unix_open_handle(int mount, const struct unix_file *file, uint32_t type, int flags)
{
	union unix_handle handle = { 0 };

	handle.head.handle_bytes = file->words * (uint32_t)sizeof(file->handle[0]);
	handle.head.handle_type = (int)type;
	memcpy(handle.head.f_handle, file->handle, sizeof(file->handle));
	return open_by_handle_at(mount, &handle.head, flags);
}

/* -- where it is passed on -------------------------------------------------------------------- */

/* Returns the length of what the link of a descriptor says, or 0. */
static size_t unix_read_link(int fd, char *room, size_t size)
{
	char name[40];
	ssize_t length;

	(void)snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	length = readlink(name, room, size);
	return length < 0 || (size_t)length >= size ? 0 : (size_t)length;
}

/*
 * The path that it has on the root, whatever its own process calls it; returns the length, 0 if there is
 * none. The kernel has the inode: nothing here waits for locks of the root.
 */
static size_t unix_find_path(int root, const struct unix_file *file, char *path)
{
	char top[UNIX_MOST_PATH], found[UNIX_MOST_PATH];
	const int fd = unix_open_handle(root, file, file->type, O_PATH | O_CLOEXEC);
	const size_t before = unix_read_link(root, top, sizeof(top));
	const size_t length = fd < 0 ? 0 : unix_read_link(fd, found, sizeof(found));

	if (fd >= 0)
		close(fd);
	if (!before || length <= before || memcmp(found, top, before) || found[before] != '/')
		return 0;
	memcpy(path, found + before, length - before);
	return length - before;
}

/* Without what is of the moment in which it was opened. */
static uint32_t unix_read_flags(int fd)
{
	return (uint32_t)(fcntl(fd, F_GETFL) & ~(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_ASYNC));
}

static bool unix_is_in_memory(int fd)
{
	const size_t most = sizeof(unix_memory) - 1;
	char path[UNIX_MOST_PATH];

	return unix_read_link(fd, path, sizeof(path)) > most && !memcmp(path, unix_memory, most);
}

/* What FUSE shows would be asked of the daemon. */
static bool unix_is_on_root(int fd)
{
	union unix_handle handle = { .head.handle_bytes = sizeof(((struct unix_file *)0)->handle) };
	struct statfs system;
	int mount;

	return !name_to_handle_at(fd, "", &handle.head, &mount, AT_EMPTY_PATH) &&
		handle.head.handle_type != UNIX_FUSE && handle.head.handle_type != UNIX_FUSE_PARENT &&
		!fstatfs(fd, &system) && system.f_type == UNIX_ROOT_KIND;
}

static size_t unix_describe_stream(int fd, uint64_t number, struct unix_passed *head)
{
	struct stat status = { .st_mode = S_IFIFO };

	/* A FIFO of the root might have to wait for other nodes. */
	if (fcntl(fd, F_GETPIPE_SZ) < 0 && !unix_is_on_root(fd) && fstat(fd, &status))
		return 0;
	*head = (struct unix_passed){
		.number = number,
		.flags = unix_read_flags(fd) & (O_ACCMODE | O_NONBLOCK),
		/* By its name nobody opens it. */
		.mode = (status.st_mode & S_IFMT) | S_IRUSR | S_IWUSR,
		.rdev = (uint32_t)status.st_rdev,
	};
	return sizeof(*head);
}

/*
 * Returns the size of what is to be told of an open file; 0 if it cannot be had elsewhere. `number` is what
 * it is called if it is a stream.
 */
static size_t unix_describe(int root, int fd, uint64_t number, struct unix_told *told)
{
	union unix_handle handle = { .head.handle_bytes = sizeof(told->head.file.handle) };
	const off_t offset = lseek(fd, 0, SEEK_CUR);
	struct unix_passed *head = &told->head;
	struct statfs system;
	struct stat status;
	int mount;

	if (offset < 0 && errno == ESPIPE)
		return unix_describe_stream(fd, number, head);
	*head = (struct unix_passed){ .flags = unix_read_flags(fd), .offset = offset < 0 ? 0 : offset };
	/* fstat() of a file of the root might wait for other nodes. */
	if (fstatfs(fd, &system))
		return 0;
	if (system.f_type != UNIX_ROOT_KIND) {
		if (fstat(fd, &status) || !S_ISCHR(status.st_mode))
			return 0;
		head->device = minor(status.st_rdev);
		return sizeof(*head);
	}
	if (name_to_handle_at(fd, "", &handle.head, &mount, AT_EMPTY_PATH))
		return 0;
	head->in_memory = unix_is_in_memory(fd);
	head->file.type = (uint32_t)handle.head.handle_type;
	head->file.words = handle.head.handle_bytes / (uint32_t)sizeof(head->file.handle[0]);
	memcpy(head->file.handle, handle.head.f_handle, handle.head.handle_bytes);
	return sizeof(*head) + unix_find_path(root, &head->file, told->path);
}

/* -- where it arrives: the opener ------------------------------------------------------------- */

enum {
	UNIX_TOP = 0,		/* the ramdisk's way to the root, on which nothing else is mounted */
	UNIX_ASKED = 1,
	UNIX_USERS = 3,		/* folders of the userland, by which users have what is opened */
	UNIX_USERS_MEMORY = 4,
	UNIX_USERS_DEVICES = 5,
	UNIX_USERS_STREAMS = 6,
	UNIX_FOLDERS = 4,
};

/* Who had a descriptor of the ramdisk's mount could go up to the ramdisk. */
static bool unix_enter(const char *userland)
{
	static const char *const folders[UNIX_FOLDERS] = { "/", "/dev/shm", "/dev", "/devfs" };
	const int own = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	const int space = open(userland, O_RDONLY | O_CLOEXEC);
	int fds[UNIX_FOLDERS];

	if (own < 0 || space < 0 || setns(space, CLONE_NEWNS))
		return false;
	for (int i = 0; i < UNIX_FOLDERS; i++)
		fds[i] = open(folders[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (setns(own, CLONE_NEWNS))
		return false;
	close(own);
	close(space);
	for (int i = 0; i < UNIX_FOLDERS; i++) {
		if (fds[i] < 0 || (fds[i] != UNIX_USERS + i && dup2(fds[i], UNIX_USERS + i) < 0))
			return false;
	}
	return true;
}

static int unix_open_device(const struct unix_passed *head)
{
	static const struct {
		uint32_t number;
		const char *name;
	} devices[] = { { 3, "null" }, { 5, "zero" }, { 7, "full" }, { 8, "random" }, { 9, "urandom" } };

	for (size_t i = 0; i < sizeof(devices) / sizeof(devices[0]); i++)
		if (devices[i].number == head->device)
			return openat(UNIX_USERS_DEVICES, devices[i].name, (int)head->flags);
	errno = ENODEV;
	return -1;
}

/* Its name says all that the daemon has to know (ssi.node.devfs.streams). */
static int unix_open_stream(const struct unix_passed *head)
{
	char name[80];

	(void)snprintf(name, sizeof(name), ".stream%u-%llx-%o-%x", head->node, (unsigned long long)head->number,
		       head->mode, head->rdev);
	return openat(UNIX_USERS_STREAMS, name, (int)head->flags | O_NOCTTY);
}

/* What its path leads to is known by that from then on: the kernel would show none for a handle alone. */
static int unix_open_file(const struct unix_told *told, const char *path)
{
	const struct open_how how = {
		.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS,
	};
	const int mount = told->head.in_memory ? UNIX_USERS_MEMORY : UNIX_USERS;
	const int known = *path ? (int)syscall(__NR_openat2, UNIX_TOP, path, &how, sizeof(how)) : -1;
	const int flags = (int)told->head.flags;
	int fd = unix_open_handle(mount, &told->head.file, told->head.file.type, flags);

	if (fd < 0 && errno == ESTALE)
		fd = unix_open_handle(mount, &told->head.file, UNIX_UNLINKED, flags);
	if (known >= 0)
		close(known);
	return fd;
}

static int unix_open_told(const struct unix_told *told, size_t size)
{
	const size_t length = size - sizeof(told->head);
	char path[UNIX_MOST_PATH] = "";
	int fd;

	/* Without the first slash. */
	if (length > 1)
		memcpy(path, told->path + 1, length - 1);
	if (told->head.number)
		fd = unix_open_stream(&told->head);
	else
		fd = told->head.device ? unix_open_device(&told->head) : unix_open_file(told, path);
	if (fd >= 0 && told->head.offset && lseek(fd, told->head.offset, SEEK_SET) < 0) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* Opens one file after the other, as root: who passes it on has had it opened. */
static _Noreturn void unix_be_opener(int root, int line, const char *userland)
{
	struct unix_told told;

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	(void)prctl(PR_SET_NAME, "unixopener");
	if (dup2(root, UNIX_TOP) < 0 || dup2(line, UNIX_ASKED) < 0)
		_exit(1);
	(void)close_range(UNIX_USERS, UINT_MAX, 0);
	if (!unix_enter(userland))
		_exit(1);
	for (;;) {
		const ssize_t size = recv(UNIX_ASKED, &told, sizeof(told), 0);
		int fd, error;
		struct iovec answer = { .iov_base = &error, .iov_len = sizeof(error) };

		if (size < (ssize_t)sizeof(told.head))
			_exit(0);
		fd = unix_open_told(&told, (size_t)size);
		error = fd < 0 ? errno : 0;
		if (!keeper_send(UNIX_ASKED, &answer, 1, fd))
			_exit(0);
		if (fd >= 0)
			close(fd);
	}
}

#endif
