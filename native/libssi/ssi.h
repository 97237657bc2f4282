/*
 * libssi: what a program can ask about the cluster it runs in. Link with -lssi.
 *
 * The calls are those of libcluster (OpenSSI and Cluster Infrastructure for Linux). Each asks the node
 * daemon, waits up to ten seconds while that is being restarted, and is safe to call from any thread.
 *
 * -1 means failure, with errno: ENOSYS on a machine that is no node of a cluster, EINVAL for a node
 * number or state that is none, EPERM for what only root may do, ETIMEDOUT if there is no answer.
 */
#ifndef SSI_H
#define SSI_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Number of a transition. They grow by one, the same on all nodes; 0 is before the first. */
typedef uint64_t transid_t;

/* Number of a node, from 1; 0 is none. */
typedef uint32_t clusternode_t;

typedef enum {
	CLUSTERNODE_NEVERUP = 1,
	CLUSTERNODE_COMINGUP,
	CLUSTERNODE_UP,
	CLUSTERNODE_SHUTDOWN,
	CLUSTERNODE_GOINGDOWN,
	CLUSTERNODE_KCLEANUP,
	CLUSTERNODE_UCLEANUP,
	CLUSTERNODE_DOWN
} clusternode_state_t;

/* A node went from one state to another. */
typedef struct {
	transid_t transid;
	int64_t time_us;		/* since 1970 */
	uint64_t view;			/* of the membership it belongs to */
	clusternode_t node;
	clusternode_state_t from, to;
	char cause[64];
} cluster_transinfo_t;

typedef struct {
	clusternode_t node;
	clusternode_state_t state;
	int member;			/* 1 if it is in the current view */
	char address[48];
	cluster_transinfo_t last;	/* its last transition; transid 0 if none is remembered */
} clusternode_info_t;

/* For cluster_detailedtransition: which one, seen from *transid. */
enum {
	CLUSTER_TRANSITION_THIS = 0,
	CLUSTER_TRANSITION_NEXT,
	CLUSTER_TRANSITION_PREV,
	CLUSTER_TRANSITION_FIRST,
	CLUSTER_TRANSITION_LAST
};

/* For clusternode_setinfo. */
enum { CLUSTERNODE_SETSTATE = 1 };

/*
 * Stores the nodes that are UP in `nodes`, which has room for `length` numbers, and a zero behind them;
 * returns how many there are. *transid becomes the number of the last transition that this includes.
 * ERANGE if there is too little room; cluster_maxnodes() + 1 is always enough.
 */
int cluster_membership(transid_t *transid, int length, clusternode_t *nodes);

/*
 * Finds the first transition after *transid by which a node became UP or ceased to be UP. Returns 1 and
 * stores it, and its number in *transid; 0 if there is none yet. `size` is sizeof(*info). Only the last
 * few hundred are remembered: who sees numbers missing asks cluster_membership again.
 */
int cluster_transition(transid_t *transid, int size, cluster_transinfo_t *info);

/* The same for transitions between any states, and in any direction. */
int cluster_detailedtransition(int which, transid_t *transid, int size, cluster_transinfo_t *info);

/* Stores what is known of `node`; `size` is sizeof(*info). */
int clusternode_info(clusternode_t node, int size, clusternode_info_t *info);

/* `what` is CLUSTERNODE_SETSTATE: gives `node` the state info->state. For root. */
int clusternode_setinfo(clusternode_t node, int what, int size, const clusternode_info_t *info);

/* 1 if `node` is UP, else 0. */
int clusternode_avail(clusternode_t node);

/* The number of the node this runs on. */
int clusternode_num(void);

/* The largest number a node can have. */
int cluster_maxnodes(void);

/* The cluster's name, in memory of this thread's that the next call uses again; NULL for failure. */
char *cluster_name(void);

/* 1 on a node of a cluster, else 0. */
int cluster_ssiconfig(void);

/* Stores the node's address; *length is the room for it, then its length. */
int clusternode_get_ip(clusternode_t node, struct sockaddr *address, int *length);

/*
 * Returns a descriptor that becomes readable when a node becomes UP or ceases to be UP, beginning with
 * the transitions after `since` (what cluster_membership stored). Close it with close().
 */
int cluster_events_open(transid_t since);

/*
 * Reads one such transition; waits for it unless the descriptor has O_NONBLOCK (then -1 and EAGAIN).
 * Returns 1; or 0 if the node daemon has ended: close the descriptor, open another one since the last
 * transition.
 */
int cluster_events_read(int fd, cluster_transinfo_t *info);

/*
 * Moves the calling process, with all its threads, to `node`; returns 0 there. At once if it is there already.
 *
 * If it stays: EBUSY if something keeps it, which /proc/self/cantmove names; EHOSTDOWN if the node is
 * not up, or was lost; EIO if the move has failed, which the node's log explains; EINVAL, ENOSYS.
 * For another process write the node's number to /proc/PID/goto: the same, and EPERM for one that the
 * caller may not signal, ESRCH if there is none.
 */
int ssi_migrate(int node);

#ifdef __cplusplus
}
#endif

#endif
