/*
 * The words of an answer (move.h): a program's arguments and variables.
 */
#ifndef SSI_WORDS_H
#define SSI_WORDS_H

#include "asking.h"

/* Enough for a ghost, with the two NULLs. */
enum { GHOST_WORDS = 12 };

/*
 * Has `words` lead to them: the arguments, a NULL, the variables, and a NULL. Returns where the variables begin, NULL if
 * they are not whole, or more than there is `room` for.
 */
static char **list_words(struct answer *answer, char **words, size_t room)
{
	const size_t count = answer->packet.head.words;
	char *next = answer->packet.bytes + sizeof(answer->packet.head);
	char *end = answer->packet.bytes + answer->size;
	size_t arguments;

	if (count + 2 > room || answer->packet.head.variables > count)
		return NULL;
	arguments = count - answer->packet.head.variables;
	for (size_t i = 0; i < count; i++) {
		char *stop = memchr(next, 0, (size_t)(end - next));

		if (!stop)
			return NULL;
		words[i < arguments ? i : i + 1] = next;
		next = stop + 1;
	}
	words[arguments] = words[count + 1] = NULL;
	return words + arguments + 1;
}

#endif
