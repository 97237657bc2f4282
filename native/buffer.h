/*
 * Bytes that wait: added at the end, taken from the beginning.
 */
#ifndef SSI_BUFFER_H
#define SSI_BUFFER_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct buffer {
	unsigned char *data;
	size_t begin, end, room;
};

static size_t length_of(const struct buffer *buffer)
{
	return buffer->end - buffer->begin;
}

static const unsigned char *begin_of(const struct buffer *buffer)
{
	return buffer->data + buffer->begin;
}

/* Returns where `size` bytes may be put at the end; NULL without memory. */
static unsigned char *make_room(struct buffer *buffer, size_t size)
{
	const size_t length = length_of(buffer);

	if (length)
		memmove(buffer->data, buffer->data + buffer->begin, length);
	buffer->begin = 0;
	buffer->end = length;
	if (buffer->room - length < size) {
		unsigned char *data = realloc(buffer->data, length + size);

		if (!data)
			return NULL;
		buffer->data = data;
		buffer->room = length + size;
	}
	return buffer->data + length;
}

static void clear(struct buffer *buffer)
{
	free(buffer->data);
	*buffer = (struct buffer){ 0 };
}

/* It may have been cleared meanwhile. */
static void consume(struct buffer *buffer, size_t size)
{
	buffer->begin += size < length_of(buffer) ? size : length_of(buffer);
	if (!length_of(buffer))
		clear(buffer);
}

static bool append(struct buffer *buffer, const void *data, size_t size)
{
	unsigned char *place = size ? make_room(buffer, size) : NULL;

	if (!place)
		return !size;
	memcpy(place, data, size);
	buffer->end += size;
	return true;
}

#endif
