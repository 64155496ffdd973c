// Images that are read and point clouds that are written.
#pragma once

#include <cctype>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <system_error>
#include <vector>

#include "bundle.hpp"

struct Image {
    std::size_t width, height;
    std::vector<std::uint8_t> pixels;  // height x width x RGB
};

// The next number of a PPM's header, behind white space and comments; -1 if there is none.
inline long header_number(std::istream& file) {
    for (file >> std::ws; file.peek() == '#'; file >> std::ws) file.ignore(1 << 20, '\n');
    long value = -1;
    return file >> value ? value : -1;
}

// Read a binary PPM of 8 bits, of a size that the bundle serves.
inline Image read_ppm(const fs::path& path, const Bundle& bundle) {
    std::error_code none;
    std::ifstream file;
    if (fs::is_regular_file(path, none)) file.open(path, std::ios::binary);
    if (!file.is_open()) throw Failure(path.string() + ": cannot be read; check the path");
    char kind[2] = {};
    file.read(kind, 2);
    const long width = header_number(file), height = header_number(file), levels = header_number(file);
    if (std::memcmp(kind, "P6", 2) != 0 || width < 1 || height < 1 || levels != 255 || !std::isspace(file.get()))
        throw Failure(path.string() + ": is no binary PPM (P6) of 8 bits; convert the image");
    Image image{static_cast<std::size_t>(width), static_cast<std::size_t>(height), {}};
    bundle.check_size(path.string(), image.width, image.height);
    image.pixels.resize(image.width * image.height * 3);
    file.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
    if (!file || file.peek() != std::ifstream::traits_type::eof())
        throw Failure(path.string() + ": has not as many pixels as its header says; save the image again");
    return image;
}

class PointCloud {
public:
    void add(const float* point, const std::uint8_t* color) {
        vertices_.append(reinterpret_cast<const char*>(point), 3 * sizeof(float));
        vertices_.append(reinterpret_cast<const char*>(color), 3);
    }

    std::size_t size() const { return vertices_.size() / 15; }

    // Refuse a place that write() could not write to, or that holds what mapengine did not write.
    static void check_place(const fs::path& path) {
        std::error_code none;
        const fs::path folder = path.has_parent_path() ? path.parent_path() : ".";
        if (!fs::is_directory(folder, none))
            throw Failure(path.string() + ": its folder does not exist; make it first");
        if (!fs::exists(fs::symlink_status(path, none))) return;
        std::string begin(std::strlen(mark), '\0');
        if (fs::is_regular_file(path, none))
            std::ifstream(path, std::ios::binary).read(begin.data(), static_cast<std::streamsize>(begin.size()));
        if (begin != mark)
            throw Failure(path.string() + ": is there already and is no point cloud of mapengine; choose another name");
    }

    // Write a binary PLY as Scene.save does, but for the comments about views. It appears whole or not at all.
    void write(const fs::path& path) const {
        const std::string header = std::string(mark) +
                                   "comment OpenCV axes of the cameras: x right, y down, z forward\n"
                                   "element vertex " + std::to_string(size()) + "\n"
                                   "property float x\nproperty float y\nproperty float z\nproperty uchar red\n"
                                   "property uchar green\nproperty uchar blue\nend_header\n";
        const fs::path temporary = path.string() + "." + std::to_string(std::random_device{}()) + ".part";
        std::FILE* file = std::fopen(temporary.string().c_str(), "wbx");  // x: never over what is there
        bool done = file != nullptr;
        if (file != nullptr) {
            for (const std::string* part : {&header, &vertices_})
                done = done && std::fwrite(part->data(), 1, part->size(), file) == part->size();
            done = std::fclose(file) == 0 && done;
        }
        std::error_code failed(done ? 0 : errno != 0 ? errno : EIO, std::generic_category());
        if (done) fs::rename(temporary, path, failed);
        if (!failed) return;
        std::error_code none;
        if (file != nullptr) fs::remove(temporary, none);
        throw Failure(path.string() + ": cannot be written (" + failed.message() + "); check the folder and the disk");
    }

private:
    static constexpr const char* mark =
        "ply\nformat binary_little_endian 1.0\ncomment mapengine point cloud\n";
    std::string vertices_;  // per vertex x, y, z as float32 and red, green, blue as bytes
};
