/* Hands cuda.bindings the functions of a stand-in driver: it asks for every function of the CUDA driver by name. */
typedef void *(*lookup_function)(const char *name);

static lookup_function lookup;

void set_lookup(lookup_function function) { lookup = function; }

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
    (void)version, (void)flags;
    *function = lookup ? lookup(name) : 0;
    if (status) *status = *function ? 0 : 1;
    return *function ? 0 : 500; /* CUDA_ERROR_NOT_FOUND */
}
