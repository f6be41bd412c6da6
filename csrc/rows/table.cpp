#include "rows/rows.hpp"

#include "fastack/cpu.hpp"

#include <cstring>

namespace fastack {

#define FASTACK_DECLARE(level)                                                                               \
    namespace level {                                                                                        \
    extern const Rows table;                                                                                 \
    }
#ifdef FASTACK_HAVE_V2
FASTACK_DECLARE(v2)
#endif
#ifdef FASTACK_HAVE_V3
FASTACK_DECLARE(v3)
#endif
#ifdef FASTACK_HAVE_V4
FASTACK_DECLARE(v4)
#endif
#ifdef FASTACK_HAVE_NEON
FASTACK_DECLARE(neon)
#endif
#ifdef FASTACK_HAVE_GENERIC
FASTACK_DECLARE(generic)
#endif

namespace {

struct Available {
    const Rows* tables[6] = {};
    const char* names[6] = {};
    int count = 0;
    const Rows* chosen = nullptr;

    Available() {
        [[maybe_unused]] const int level = x86_level();
#ifdef FASTACK_HAVE_GENERIC
        add(generic::table);
#endif
#ifdef FASTACK_HAVE_NEON
        add(neon::table);
#endif
#ifdef FASTACK_HAVE_V2
        if (level >= 2)
            add(v2::table);
#endif
#ifdef FASTACK_HAVE_V3
        if (level >= 3)
            add(v3::table);
#endif
#ifdef FASTACK_HAVE_V4
        if (level >= 4)
            add(v4::table);
#endif
    }

    void add(const Rows& rows) {
        names[count] = rows.name;
        chosen = tables[count++] = &rows;
    }
};

Available& available() {
    static Available instance;
    return instance;
}

} // namespace

const Rows& rows() { return *available().chosen; }

const char* const* levels() { return available().names; }

bool choose(const char* name) {
    Available& all = available();
    for (int i = all.count - 1; i >= 0; --i)
        if (!name || std::strcmp(all.names[i], name) == 0) {
            all.chosen = all.tables[i];
            return true;
        }
    return false;
}

} // namespace fastack
